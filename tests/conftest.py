from hypothesis import settings

# The same examples each time, and no deadline: a busy machine is no bug.
settings.register_profile("skdiec", derandomize=True, deadline=None, database=None)
settings.load_profile("skdiec")
