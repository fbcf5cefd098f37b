from pipeline.stores.clip_ids import split_clip_id  # until the running benchmark ends
