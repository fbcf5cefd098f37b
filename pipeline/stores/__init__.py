"""The only owner of file formats: manifests, shards, feature stores, checkpoints, index generations."""
