from tools.launcher.apt import planned_packages

PLAN = """\
NOTE: This is only a simulation!
Inst libc6 [2.36-9+deb12u9] (2.36-9+deb12u10 Debian:12.11/stable [amd64])
Inst erlang-base (1:25.2.3+dfsg-1+deb12u4 Debian:12.11/stable [amd64])
Inst rabbitmq-server (3.10.8-1.1+deb12u1 Debian:12.11/stable [all])
Conf erlang-base (1:25.2.3+dfsg-1+deb12u4 Debian:12.11/stable [amd64])
"""


def test_plan_names_what_is_new_and_leaves_the_systems_own_alone() -> None:
    assert planned_packages(PLAN) == ["erlang-base", "rabbitmq-server"]
