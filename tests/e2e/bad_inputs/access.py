"""What callers show in place of a key, over both transports.

The server has the keys of `entries()`. Sources: RFC 6750 (Bearer); docs/howto/keys.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc import service_pb2 as pb

from service.access.keys import SCOPES, Key, Scope, digest_of, new_key
from service.core.errors import Unauthenticated
from tests.e2e.bad_inputs.case import INFERENCE, Grpc, Http, framed, request

# New ones for each run: no test has a key that anything accepts later.
KEYS: dict[Scope, str] = {scope: new_key() for scope in SCOPES}
EXPIRED, REVOKED = new_key(), new_key()
SENTENCE = Unauthenticated.of("missing").message
# Each in place of the header's name and value.
_PREDICT = KEYS["predict"]
CREDENTIALS: dict[str, Mapping[str, str]] = {
    "no key": {},
    "an empty Authorization": {"authorization": ""},
    "an empty x-api-key": {"x-api-key": ""},
    "Bearer without a key": {"authorization": "Bearer"},
    "Bearer and spaces": {"authorization": "Bearer   "},
    "a key without Bearer": {"authorization": _PREDICT},
    "a key as a password": {"authorization": f"Basic {_PREDICT}"},
    "a key as another scheme's": {"authorization": f"Token {_PREDICT}"},
    "two schemes": {"authorization": f"Bearer Bearer {_PREDICT}"},
    "two keys in one header": {"authorization": f"Bearer {_PREDICT},{_PREDICT}"},
    "Bearer in x-api-key": {"x-api-key": f"Bearer {_PREDICT}"},
    "both headers": {"authorization": f"Bearer {_PREDICT}", "x-api-key": _PREDICT},
    "both headers, one of them wrong": {"authorization": "Bearer x", "x-api-key": _PREDICT},
    "both headers, one of them empty": {"authorization": f"Bearer {_PREDICT}", "x-api-key": ""},
    "an unknown key": {"x-api-key": new_key()},
    "an expired key": {"x-api-key": EXPIRED},
    "an expired key as Bearer": {"authorization": f"Bearer {EXPIRED}"},
    "a revoked key": {"x-api-key": REVOKED},
    "a key that lacks its end": {"x-api-key": _PREDICT[:-1]},
    "a key with something behind it": {"x-api-key": f"{_PREDICT}x"},
    "a key in upper case": {"x-api-key": _PREDICT.upper()},
    "a key without its prefix": {"x-api-key": _PREDICT.removeprefix("mnist_")},
    "the SHA-256 of a key": {"x-api-key": digest_of(_PREDICT).hex()},
    "the SHA-256 of a key, as in the file": {"x-api-key": f"sha256:{digest_of(_PREDICT).hex()}"},
    "the name of a key": {"x-api-key": "predict"},
    "a name of a certificate": {"x-api-key": "gateway.example"},
    "a certificate that no proxy has verified": {
        "x-forwarded-client-cert": "By=x;Hash=0;URI=gateway.example"
    },
    "an oversized key": {"x-api-key": "k" * 513},
    "a key of 8 KiB": {"x-api-key": "k" * 8192},
    "an oversized Bearer": {"authorization": f"Bearer {'k' * 4096}"},
    "a cookie": {"cookie": f"x-api-key={_PREDICT}; authorization=Bearer {_PREDICT}"},
    "a key under another name": {"api-key": _PREDICT},
    "a key for a proxy": {"proxy-authorization": f"Bearer {_PREDICT}"},
}
_NOT_ASCII = {"a key that is not ASCII": "schl\u00fcssel", "a key of other scripts": "\u9375" * 16}
_TWICE = f"x-api-key: {_PREDICT}\r\nx-api-key: {_PREDICT}"
_QUERIES = ("key", "api_key", "x-api-key", "access_token", "authorization")


def entries() -> list[Key]:
    """What the file of keys has."""
    keys = [Key(scope, frozenset({scope}), None, digest_of(KEYS[scope])) for scope in SCOPES]
    everything = frozenset(SCOPES)
    keys.append(Key("late", everything, 1.0, digest_of(EXPIRED)))
    keys.append(Key("gateway", everything, None, certificate="gateway.example"))
    return keys


def _bodies() -> list[Http]:
    """The credentials on a route with a body, on one without, and where nothing is."""
    cases = []
    for name, headers in CREDENTIALS.items():
        for what, method, path in (
            ("POST /predict", "POST", "/predict"),
            ("GET /v2", "GET", "/v2"),
            ("nowhere", "GET", "/nowhere"),
        ):
            content = request(method, path, b"", headers)
            cases.append(Http(f"{name} for {what}", content, 401, SENTENCE))
    return cases


def _http() -> list[Http]:
    good = {"x-api-key": _PREDICT}
    read = {"authorization": f"Bearer {KEYS['read']}"}
    cases = _bodies()
    for name, value in _NOT_ASCII.items():
        for header in ("x-api-key", "authorization"):
            content = request("GET", "/v2", b"", {header: f"Bearer {value}"})
            cases.append(Http(f"{name} in {header}", content, 401, SENTENCE))
    for name in ("x-api-key", "authorization"):
        twice = f"{name}: Bearer {_PREDICT}\r\n".encode() * 2
        content = request("GET", "/v2").replace(b"\r\n\r\n", b"\r\n" + twice + b"\r\n", 1)
        cases.append(Http(f"{name} twice", content, 401, SENTENCE))
    for name in _QUERIES:
        content = request("GET", f"/v2?{name}={KEYS['read']}")
        cases.append(Http(f"a key in the query as {name}", content, 401, SENTENCE))
    body = b"x" * 100_000
    for name, headers, status in (
        ("a body", {}, 401),
        ("a body and an expired key", {"x-api-key": EXPIRED}, 401),
    ):
        content = request("POST", "/predict", body, headers)
        cases.append(Http(f"{name} without a valid key", content, status, SENTENCE, closes=True))
    for scope, headers, method, path in (
        ("metrics", good, "GET", "/metrics"),
        ("read", good, "GET", "/v2"),
        ("read", good, "GET", "/v2/models/mnist/ready"),
        ("read", good, "GET", "/v2/models/none"),
        ("read", good, "POST", "/v2/repository/index"),
        ("predict", read, "POST", "/predict"),
        ("predict", read, "POST", "/read"),
        ("predict", read, "POST", "/v2/models/none/infer"),
        ("admin", read, "POST", "/v2/repository/models/none/load"),
        ("admin", read, "POST", "/v2/repository/models/mnist/unload"),
        ("admin", read, "POST", "/v2/logging"),
        ("admin", good, "POST", "/v2/trace/setting"),
        ("admin", read, "POST", "/v2/systemsharedmemory/region/a/register"),
        ("admin", read, "POST", "/v2/cudasharedmemory/unregister"),
    ):
        content = request(method, path, b"", headers)
        cases.append(Http(f"{path} without {scope}", content, 403, f"the scope {scope}"))
    content = request("GET", "/nowhere", b"", good)
    return [*cases, Http("nowhere, with a key", content, 404, "Nothing is at")]


def _call(
    name: str, method: str, headers: Mapping[str, str], code: str, words: str, content: bytes = b""
) -> Grpc:
    return Grpc(name, method, [framed(content)], code, words, headers=headers)


def _grpc() -> list[Grpc]:
    cases = []
    for name, headers in CREDENTIALS.items():
        for what, path in (
            ("metadata", f"{INFERENCE}/ServerMetadata"),
            ("nowhere", "/digits.v1.DigitClassifier/Nothing"),
            ("a stream", f"{INFERENCE}/ModelStreamInfer"),
        ):
            # grpcio ends a call with more than 8 KiB of metadata itself.
            own_alone = len(headers.get("x-api-key", "")) > 8000
            case = _call(f"{name} for {what}", path, headers, "UNAUTHENTICATED", SENTENCE)
            cases.append(case._replace(fronts="own") if own_alone else case)
    good, read = {"x-api-key": _PREDICT}, {"authorization": f"Bearer {KEYS['read']}"}
    level = pb.LogSettingsRequest()
    level.settings["log_info"].bool_param = False
    trace = pb.TraceSettingRequest()
    trace.settings["trace_level"].value.append("OFF")
    for scope, headers, method, content in (
        ("read", good, "ServerMetadata", b""),
        ("read", good, "ModelReady", b""),
        ("read", good, "RepositoryIndex", b""),
        ("read", good, "ModelStatistics", b""),
        ("predict", read, "ModelInfer", b""),
        ("predict", read, "ModelStreamInfer", b""),
        ("admin", good, "RepositoryModelLoad", b""),
        ("admin", read, "RepositoryModelUnload", b""),
        ("admin", read, "SystemSharedMemoryRegister", b""),
        ("admin", read, "CudaSharedMemoryUnregister", b""),
        ("admin", read, "LogSettings", level.SerializeToString()),
        ("admin", read, "TraceSetting", trace.SerializeToString()),
    ):
        cases.append(
            _call(
                f"{method} without {scope}",
                f"{INFERENCE}/{method}",
                headers,
                "PERMISSION_DENIED",
                f"the scope {scope}",
                content,
            )
        )
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    cases.append(_call("reflection without a key", reflection, {}, "UNAUTHENTICATED", SENTENCE))
    cases.append(
        _call("reflection without read", reflection, good, "PERMISSION_DENIED", "the scope read")
    )
    nowhere = "/digits.v1.DigitClassifier/Nothing"
    cases.append(_call("nowhere, with a key", nowhere, good, "UNIMPLEMENTED", "Nothing"))
    return cases


HTTP = _http()
GRPC = _grpc()
