"""Rewards in other processes or on other machines: the reward server, its client, workers, the wire format."""
