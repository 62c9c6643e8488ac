"""What a case of `kvtool bench` found that is of its own kind: one file a part."""
