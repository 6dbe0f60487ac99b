"""Python's own servers and those from PyPI."""

import signal
import subprocess

from ..program import Program
from ..scene import Scene

PYTHON = Program("Python", "deb:python3")
UVLOOP = Program("uvloop", "pypi:uvloop")
GUNICORN = Program("gunicorn", "pypi:gunicorn")
UVICORN = Program("uvicorn", "pypi:uvicorn")
TWISTED = Program("Twisted", "pypi:twisted")
GRPC = Program("gRPC for Python", "pypi:grpcio")
AIOQUIC = Program("aioquic", "pypi:aioquic")


@PYTHON.case("http.server, urllib")
def http(scene: Scene) -> None:
    server = scene.server("web", [scene.python, "-m", "http.server", "80"], 80)
    scene.loops([scene.python, scene.source("py_servers.py"), "get_requests", "http://web/blob"])
    scene.stop(server)


def _pair(scene: Scene, python: str, kind: str) -> None:
    source = scene.source("py_servers.py")
    server = scene.server("web", [python, source, f"serve_{kind}", f"{scene.work}/blob", "80"], 80)
    scene.loops([python, source, f"get_{kind}", "http://web/blob"])
    scene.stop(server)


@PYTHON.case("asyncio streams")
def asyncio(scene: Scene) -> None:
    _pair(scene, scene.python, "asyncio")


@UVLOOP.case("streams")
def uvloop(scene: Scene) -> None:
    _pair(scene, f"{scene.venv}/python", "uvloop")


@TWISTED.case("web server, Agent")
def twisted(scene: Scene) -> None:
    _pair(scene, f"{scene.venv}/python", "twisted")


@GUNICORN.case("two workers, reload, curl", "deb:curl")
def gunicorn(scene: Scene) -> None:
    scene.source("wsgi_app.py")
    command = [f"{scene.venv}/gunicorn", "-w", "2", "-b", "0.0.0.0:80", "--no-control-socket", "wsgi_app:wsgi"]
    server = scene.server("web", command, 80, env={"BLOB": f"{scene.work}/blob"})
    load = scene.background(scene.repeated(["curl", "-sSf", "http://web/blob"], 50, 2))
    server.send_signal(signal.SIGHUP)
    assert load.wait() == 0, load.errors()
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


@UVICORN.case("two workers, curl", "deb:curl")
def uvicorn(scene: Scene) -> None:
    scene.source("wsgi_app.py")
    command = [f"{scene.venv}/uvicorn", "--workers", "2", "--host", "0.0.0.0", "--port", "80", "wsgi_app:asgi"]
    server = scene.server("web", command, 80, env={"BLOB": f"{scene.work}/blob"})
    scene.moves(["curl", "-sSf", "http://web/blob"])
    scene.stop(server)


def _grpc(scene: Scene, kind: str) -> None:
    source = scene.source("grpc_blob.py")
    python = f"{scene.venv}/python"
    server = scene.server("rpc", [python, source, f"serve_{kind}", f"{scene.work}/blob", "5000"], 5000)
    scene.loops([python, source, f"get_{kind}", "rpc:5000"])
    scene.stop(server)


@GRPC.case("sync")
def grpc_sync(scene: Scene) -> None:
    _grpc(scene, "sync")


@GRPC.case("aio")
def grpc_aio(scene: Scene) -> None:
    _grpc(scene, "aio")


@GRPC.case("no call is trapped")
def untrapped(scene: Scene) -> None:
    source, python = scene.source("grpc_blob.py"), f"{scene.venv}/python"
    server = scene.server("rpc", [python, source, "serve_sync", f"{scene.work}/blob", "5000"], 5000)
    scene.no_traps("1000 calls", [python, source, "get_calls", "rpc:5000", "1000", "1", "-"])
    scene.stop(server)


@AIOQUIC.case("HTTP/3, with QUIC's own retransmission", "deb:openssl", udp=True)
def quic(scene: Scene) -> None:
    source, python = scene.source("http3.py"), f"{scene.venv}/python"
    key, certificate = scene.work / "key.pem", scene.client_work / "certificate.pem"
    subject = ["-subj", "/CN=web", "-addext", "subjectAltName=DNS:web"]
    words = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate), *subject]
    subprocess.run(["openssl", "req", "-x509", *words], check=True, capture_output=True)
    server = scene.server("web", [python, source, "serve", f"{scene.work}/blob", "443", certificate, key], 443)
    scene.loops([python, source, "get", "web:443", certificate])
    scene.stop(server)
