"""Reward functions for the loops that people run, a file a host; importing one imports no host.

from gram_fast.integrations.trl import group_reward
"""
