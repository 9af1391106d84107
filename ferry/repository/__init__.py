"""The bucket: bytes, keys, manifests, leases."""
