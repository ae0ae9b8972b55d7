"""Work spread over processes: workers, pools, the driver, and what they leave on disk."""
