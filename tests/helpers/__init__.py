"""What several tests share: small models, tokenizers, trainings, layouts of inputs, scripts for two processes."""

import pytest

# As in test files: an assertion that fails shows its values.
pytest.register_assert_rewrite("helpers.attention", "helpers.exactness")
