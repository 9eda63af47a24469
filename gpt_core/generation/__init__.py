"""The slot engine: requests in, the same tokens out in any company."""
