"""The reports of `kvtool compare`: runs metric by metric, models as a matrix and a heat map."""
