"""A model of the data path, explored whole by Spin; see docs/model.md."""
