"""Campaigns: trials, their records and the store they are kept in."""
