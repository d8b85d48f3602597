"""Measurements that are published with their seed: they drive the real processes and are no part of the product."""
