"""Whatever the OpenAPI document allows or forbids, no request is answered by a failure of ours."""

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from plait.serve.conftest import Running, serving, tiny_engine

PATHS = {
    "/v1/chat/completions": 25,
    "/v1/completions": 20,
    "/tokenize": 15,
    "/detokenize": 10,
    "/v1/models": 1,
    "/health": 1,
    "/metrics": 1,
}


@pytest.fixture(scope="module")
def small(request: pytest.FixtureRequest) -> Running:
    """A server whose answers are short, whatever is asked for."""
    context = serving(tiny_engine(max_context=64))
    request.addfinalizer(lambda: context.__exit__(None, None, None))  # noqa: PT021
    return context.__enter__()


# schemathesis draws from the random module, which hypothesis seeds and warns about.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_a_server_error(small, path):
    schema = schemathesis.openapi.from_dict(httpx2.get(f"{small.url}/openapi.json").json())
    [operation] = [each.ok() for each in schema.get_all_operations() if each.ok().path == path]
    strategy = operation.as_strategy() | operation.as_strategy(
        generation_mode=schemathesis.GenerationMode.NEGATIVE
    )
    statuses = []

    @settings(
        max_examples=PATHS[path],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case):
        response = case.call(base_url=small.url)
        assert response.status_code < 500, response.text
        statuses.append(response.status_code)

    send()
    assert statuses
