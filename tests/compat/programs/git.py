"""git daemon."""

from ..program import Program
from ..scene import Scene

GIT = Program("git", "deb:git")


@GIT.case("daemon, git clone")
def daemon(scene: Scene) -> None:
    make = (
        "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a; mkdir repo; cd repo; "
        "git init -q -b main && cp ../blob . && git add blob && git commit -qm one"
    )
    scene.client(["sh", "-c", make], at="servers", trace=False)
    words = ["git", "daemon", "--export-all", f"--base-path={scene.work}", "--reuseaddr"]
    server = scene.server("forge", words, 9418)
    scene.moves(["sh", "-c", "rm -rf got$N; git clone -q git://forge/repo got$N && cat got$N/blob"])
    scene.stop(server)
