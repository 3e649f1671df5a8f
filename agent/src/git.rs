//! Fetches exactly one commit.
