"""Campaigns: trials, records and the store, sweeps, and what they measure."""
