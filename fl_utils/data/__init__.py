"""Data: cards say what a data set is, the fetcher brings it, loaders read it, partitions deal it out to clients."""
