"""Windows of scenes -> batches: the tile index and its chips, statistics and splits, data sets and loaders."""
