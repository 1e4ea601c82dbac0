"""The offline examination: right data pass with counts that say so, and each planted fault is found and named."""
