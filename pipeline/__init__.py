"""Offline text-video retrieval in three stages that meet on disk: extract, train, retrieve."""
