"""How unit tests run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A property that holds on a loaded machine holds: the time limit of each test is enough.
settings.register_profile("outlast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("outlast")
