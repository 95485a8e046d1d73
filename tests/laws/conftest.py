import pytest

pytest.register_assert_rewrite("tests.laws.cases", "tests.laws.checks", "tests.laws.dense")
