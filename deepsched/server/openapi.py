"""What the REST interface is, as OpenAPI: for people, and for programs that test it."""

from __future__ import annotations

from typing import Any

from deepsched.version import __version__

_Schema = dict[str, Any]

_DATATYPES = [
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
]


def description() -> dict[str, Any]:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "deepsched serve",
            "version": __version__,
            "description": "The Open Inference Protocol v2 with Triton's extensions, and KServe's "
            'first protocol. Errors are JSON: {"error": "..."}.',
        },
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }


def _object(required: list[str] | None = None, /, **properties: Any) -> _Schema:
    return {"type": "object", "properties": properties, "required": required or []}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _one(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_STRING: _Schema = {"type": "string"}
_INTEGER: _Schema = {"type": "integer"}
_FREE: _Schema = {"type": "object"}
_SHAPE = _list({"type": "integer"})


def _schemas() -> dict[str, _Schema]:
    parameters = {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    }
    tensor = _object(["name", "datatype", "shape"], name=_STRING, datatype=_STRING, shape=_SHAPE)
    return {
        "Error": _object(["error"], error=_STRING),
        "Parameters": parameters,
        "TensorMetadata": tensor,
        "ServerMetadata": _object(
            ["name", "version", "extensions"],
            name=_STRING,
            version=_STRING,
            extensions=_list(_STRING),
        ),
        "ModelMetadata": _object(
            ["name", "versions", "platform", "inputs", "outputs"],
            name=_STRING,
            versions=_list(_STRING),
            platform=_STRING,
            inputs=_list(_one("TensorMetadata")),
            outputs=_list(_one("TensorMetadata")),
        ),
        "InferRequest": _object(
            ["inputs"],
            id=_STRING,
            parameters=_one("Parameters"),
            inputs=_list(
                _object(
                    ["name", "shape", "datatype"],
                    name=_STRING,
                    shape=_list({"type": "integer", "minimum": 0}),
                    datatype={"type": "string", "enum": _DATATYPES},
                    parameters=_one("Parameters"),
                    data={"type": "array"},
                )
            ),
            outputs=_list(_object(["name"], name=_STRING, parameters=_one("Parameters"))),
        ),
        "InferResponse": _object(
            ["model_name", "outputs"],
            model_name=_STRING,
            model_version=_STRING,
            id=_STRING,
            outputs=_list(
                _object(
                    ["name", "shape", "datatype"],
                    name=_STRING,
                    shape=_SHAPE,
                    datatype=_STRING,
                    parameters=_one("Parameters"),
                    data={"type": "array"},
                )
            ),
        ),
        "PredictRequest": {
            "oneOf": [
                _object(["instances"], instances={"type": "array", "minItems": 1}),
                _object(["inputs"], inputs={"type": ["array", "object", "number", "string"]}),
            ]
        },
        "PredictResponse": _object(predictions={}, outputs={}),
        "Region": _object(
            ["key", "byte_size"],
            key={"type": "string", "pattern": "^/?[^/]+$"},
            offset={"type": "integer", "minimum": 0},
            byte_size={"type": "integer", "minimum": 1},
        ),
    }


def _paths() -> dict[str, Any]:
    ready = _object(["ready"], ready={"type": "boolean"})
    named_ready = _object(["name", "ready"], name=_STRING, ready={"type": "boolean"})
    stats = _object(["model_stats"], model_stats=_list(_FREE))
    regions = _list(_object(name=_STRING, key=_STRING, offset=_INTEGER, byte_size=_INTEGER))
    paths = {
        "/v2/health/live": {"get": _get("Live", _object(["live"], live={"type": "boolean"}))},
        "/v2/health/ready": {"get": _get("Ready: every model is", ready, 503)},
        "/v2": {"get": _get("Server metadata", _one("ServerMetadata"))},
        "/v2/models/stats": {"get": _get("Statistics of all models", stats)},
        "/v2/repository/index": {
            "post": _post(
                "The repository's index",
                _object(ready={"type": "boolean"}),
                _list(_object(name=_STRING, version=_STRING, state=_STRING, reason=_STRING)),
            )
        },
        "/v2/systemsharedmemory/status": {"get": _get("Registered shared memory", regions, 401)},
        "/v2/systemsharedmemory/unregister": {"post": _post("Unregister all", None, _FREE)},
        "/openapi.json": {"get": _get("This document", _FREE)},
        "/v1/models": {
            "get": _get("Models", _object(["models"], models=_list(_STRING))),
        },
        "/v1/models/{model}": _with(
            ["model"], get=_get("Whether a model is ready", named_ready, 404, 503)
        ),
        "/v1/models/{model}:predict": _with(
            ["model"],
            post=_post("Predict", _one("PredictRequest"), _one("PredictResponse"), *_REFUSALS),
        ),
    }
    for action in ("load", "unload"):
        paths[f"/v2/repository/models/{{model}}/{action}"] = _with(
            ["model"],
            post=_post(
                f"{action} a model".capitalize(), _object(parameters=_FREE), _FREE, 404, 503
            ),
        )
    region = "/v2/systemsharedmemory/region/{region}"
    paths[f"{region}/status"] = _with(["region"], get=_get("Of one", regions, 400, 401))
    paths[f"{region}/register"] = _with(
        ["region"], post=_post("Register shared memory", _one("Region"), _FREE)
    )
    paths[f"{region}/unregister"] = _with(["region"], post=_post("Unregister it", None, _FREE))
    for path, names in (
        ("/v2/models/{model}", ["model"]),
        ("/v2/models/{model}/versions/{version}", ["model", "version"]),
    ):
        metadata = _get("Model metadata", _one("ModelMetadata"), 404, 503)
        paths[path] = _with(names, get=metadata)
        paths[f"{path}/ready"] = _with(names, get=_get("Model ready", named_ready, 404, 503))
        paths[f"{path}/config"] = _with(names, get=_get("Configuration", _FREE, 404, 503))
        paths[f"{path}/stats"] = _with(names, get=_get("Statistics", stats, 404, 503))
        paths[f"{path}/infer"] = _with(
            names, post=_post("Infer", _one("InferRequest"), _one("InferResponse"), *_REFUSALS)
        )
    return paths


_REFUSALS = (404, 408, 413, 503, 504)


def _with(names: list[str], **operations: Any) -> dict[str, Any]:
    return {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        **operations,
    }


def _get(summary: str, schema: _Schema, *refusals: int) -> _Schema:
    return {"summary": summary, "responses": _responses(schema, refusals)}


def _post(summary: str, body: _Schema | None, schema: _Schema, *refusals: int) -> _Schema:
    operation = {
        "summary": summary,
        "responses": _responses(schema, (400, 401, 403, *refusals)),
    }
    if body is not None:
        operation["requestBody"] = {
            "required": bool(body.get("required", True)),
            "content": {"application/json": {"schema": body}},
        }
    return operation


def _responses(schema: _Schema, refusals: tuple[int, ...]) -> dict[str, Any]:
    answered = {"description": "Done", "content": {"application/json": {"schema": schema}}}
    refused = {"description": "Refused", "content": {"application/json": {"schema": _one("Error")}}}
    # A model that is not ready says so in the fields of one that is.
    not_ready = {"description": "Not now", "content": {"application/json": {"schema": {}}}}
    return {
        "200": answered,
        **{str(status): not_ready if status == 503 else refused for status in refusals},
    }
