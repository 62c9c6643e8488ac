"""Prefill and decode nodes with storage behind them: two ways for a cached prefix to come in (DualPath)."""
