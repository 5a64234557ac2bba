"""Property tests do not fail for being on a slow machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("raytag", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raytag")
