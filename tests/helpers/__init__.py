"""What several tests share: small models and trainings, layouts of inputs, bounds, scripts for two processes."""

import pytest

# As in test files: an assertion that fails shows its values.
pytest.register_assert_rewrite("helpers.attention", "helpers.exactness")
