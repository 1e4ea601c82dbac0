"""The HTTP door as an OpenAPI 3.1 document, made from the table of methods. No sockets.

Everything that a row of the table says is taken from the row: paths and verbs by `routes`, names of fields by
`reading`, replies by the shapes with the additions of `writing`. So a new method is in the document at once.

Only the schemas of requests forbid further fields; replies may have more fields than their schemas name. Texts are
limited in bytes, which JSON Schema cannot express: `maxLength` is the same number of characters, and the format
`utf8-N` names the limit in bytes.
"""

from __future__ import annotations

from typing import Any, Final

from billing import __version__
from billing.api.http.feed import EVENTS, NDJSON
from billing.api.http.reading import CURSOR
from billing.api.http.routes import GET, ROUTES, Route
from billing.api.http.writing import JSON, PROBLEM, TYPE_PREFIX, money_name, status_of, title_of
from billing.api.methods import Field, Method
from billing.api.shapes import Field as ShapeField
from billing.api.shapes import Shape
from billing.api.values import POSITIVE, SIGNED
from billing.ledger.commands import REQUEST_ID_BYTES_MAX, USER_ID_BYTES_MAX
from billing.ledger.errors import KINDS
from billing.ledger.money import INT64_MAX

Schema = dict[str, Any]

_COINS: Final = r"[0-9]{1,9}(\.[0-9]{1,9})?"
_ABOVE_ZERO: Final = "(?=.*[1-9])"  # a lookahead: some digit is not 0
_INT64: Final = {"type": "integer", "format": "int64"}
_WIDER: Final = {"available_nanos": {"type": "integer"}}  # a balance and a limit, each of which may fill an int64
_ANY_STATUS_ERRORS: Final = ("PROTOCOL_ERROR", "FRAME_TOO_LARGE", "TOO_MANY_CONNECTIONS")
_DESCRIPTION: Final = """Prepaid accounts that are spent by the second.

Money is a decimal string of coins (`"12.5"`) or a whole number of nanos (`amount_nanos`), never a bare number of coins.
Instants (`…_ns`) are nanoseconds since the Unix epoch, UTC. An answer means that what it says is durable.

Every POST and PUT about an account takes an `Idempotency-Key`: a call that comes again with the same key is answered as
the first time, with `Idempotent-Replayed: true`. Errors are problems (RFC 9457): tell them apart by `name`; `retry`
says whether the same call may succeed later, `applied` whether it may have had its effect (`no` or `unknown`)."""


def document() -> Schema:
    """Returns the whole document."""
    shapes: dict[str, Shape] = {}
    paths: dict[str, Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route, shapes)
    schemas = {"Problem": _problem_schema()}
    done: set[str] = set()
    while pending := [shape for name, shape in sorted(shapes.items()) if name not in done]:
        for shape in pending:
            done.add(shape.name)
            schemas[shape.name] = _shape_schema(shape, shapes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "billing", "version": __version__, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "tags": [{"name": "accounts"}, {"name": "operator"}, {"name": "door"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "responses": {"Problem": _problem_response("An error.", KINDS)},
        },
    }


# -- requests ----------------------------------------------------------------------------------------------------------


def _operation(route: Route, shapes: dict[str, Shape]) -> Schema:
    method = route.method
    operation: Schema = {
        "operationId": method.name,
        "summary": method.doc,
        "description": f"Needs the role `{method.role}`.",
        "tags": [_tag(route)],
        "parameters": [_in_path(name, method) for name in route.in_path],
        "responses": {"200": _success(method, shapes)} | _errors(route),
    }
    fields = (*route.in_body, *(field for field in method.options if field.name != "request_id"))
    if method.option("request_id") is not None:
        operation["parameters"].append(_idempotency_key())
    if route.verb == GET:
        operation["parameters"] += _in_query(route, fields)
    elif fields:
        schema, required = _body(route, fields)
        operation["requestBody"] = {"required": required, "content": {JSON: {"schema": schema}}}
    return operation


def _tag(route: Route) -> str:
    if route.path.startswith("/v1/operator/"):
        return "operator"
    return "accounts" if "/accounts" in route.path or "entries" in route.path else "door"


def _in_path(name: str, method: Method) -> Schema:
    field = next(field for field in method.required if field.name == name)
    schema = field_schema(field)
    if schema.get("type") == "string":
        schema["minLength"] = 1
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _idempotency_key() -> Schema:
    schema = {"type": "string", "minLength": 1, "maxLength": REQUEST_ID_BYTES_MAX}
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "Makes the call take effect once, however often it comes: the same key has the first answer.",
        "schema": schema,
    }


def _in_query(route: Route, fields: tuple[Field, ...]) -> list[Schema]:
    required = {field.name for field in route.in_body}
    parameters = []
    for field in fields:
        if field.name == route.method.reply.cursor:
            cursor: Schema = {"type": "string", "description": "`next_cursor` of the page before."}
            cursor["format"] = f"cursor-{field.type.kind}"
            if field.type.kind != "text":  # an empty cursor of the feed means its beginning
                cursor["minLength"] = 1
            parameters.append({"name": CURSOR, "in": "query", "required": False, "schema": cursor})
            continue
        schema = field_schema(field)
        parameter = {"name": field.name, "in": "query", "required": field.name in required, "schema": schema}
        if schema["type"] == "array":
            parameter |= {"style": "form", "explode": False}
        parameters.append(parameter)
    return parameters


def _body(route: Route, fields: tuple[Field, ...]) -> tuple[Schema, bool]:
    """Returns the schema of a request's JSON body, and whether a body is required."""
    properties: dict[str, Schema] = {}
    choices: list[Schema] = []
    needed = []
    required = {field.name for field in route.in_body}
    for field in fields:
        forms = _forms(field)
        properties |= forms if field.name in required else {name: _or_null(form) for name, form in forms.items()}
        if field.name in required:
            if len(forms) == 1:
                needed.append(field.name)
            else:
                choices.append({"oneOf": [{"required": [name]} for name in forms]})
        elif len(forms) > 1:  # an option may come in one form only
            choices.append({"not": {"required": list(forms)}})
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if needed:
        schema["required"] = needed
    if len(choices) == 1:
        schema |= choices[0]
    elif choices:
        schema["allOf"] = choices
    return schema, bool(required)


def _forms(field: Field) -> dict[str, Schema]:
    """Returns the names by which a field may come, each with its schema."""
    name, kind = field.name, field.type.kind
    if kind in ("amount", "rate"):
        sign = str(field.type.bounds["sign"])
        return {name: _coins_schema(sign, field.doc), f"{name}_nanos": _nanos_schema(sign)}
    if kind == "instant":
        text = {"type": "string", "format": "date-time"}
        return {name: field_schema(field), name.removesuffix("_ns"): text}
    return {name: field_schema(field)}


def _or_null(schema: Schema) -> Schema:
    """Returns the schema with null as a further value, for an option: null means its default."""
    nullable = schema | {"type": [schema["type"], "null"]}
    return nullable | {"enum": [*schema["enum"], None]} if "enum" in schema else nullable


def _coins_schema(sign: str, doc: str) -> Schema:
    pattern = f"^{'-?' if sign == SIGNED else ''}{_ABOVE_ZERO if sign in (POSITIVE, SIGNED) else ''}{_COINS}$"
    schema = {"type": "string", "pattern": pattern, "examples": ["12.5"]}
    return schema | ({"description": doc} if doc else {})


def _nanos_schema(sign: str) -> Schema:
    low = {POSITIVE: 1, SIGNED: -INT64_MAX}.get(sign, 0)
    return _INT64 | {"minimum": low, "maximum": INT64_MAX}


def field_schema(field: Field) -> Schema:
    """Returns the schema of a field that is not money."""
    kind, bounds = field.type.kind, field.type.bounds
    schema: Schema
    if kind in ("integer", "span", "instant"):
        schema = _INT64 | {"minimum": bounds["min"], "maximum": bounds["max"]}
        if "multiple_of" in bounds:
            schema["multipleOf"] = bounds["multiple_of"]
    elif kind == "flag":
        schema = {"type": "boolean"}
    elif kind == "enum":
        schema = {"type": "string", "enum": bounds["choices"]}
    elif kind == "set":
        schema = {"type": "array", "items": {"type": "string", "enum": bounds["choices"]}, "uniqueItems": True}
    elif kind == "thresholds":
        forms = {"amount": _coins_schema("", ""), "amount_nanos": _nanos_schema("")}
        forms["runway_ns"] = _INT64 | {"minimum": 0, "maximum": INT64_MAX}
        item = {"type": "object", "properties": forms, "additionalProperties": False}
        item |= {"minProperties": 1, "maxProperties": 1}
        schema = {"type": "array", "items": item, "maxItems": bounds["length_max"]}
    elif kind == "array":
        schema = {"type": "array", "items": {}, "maxItems": bounds["length_max"]}
    else:
        bytes_max = int(str(bounds.get("bytes_max", USER_ID_BYTES_MAX)))
        bytes_min = int(str(bounds.get("bytes_min", 1)))
        schema = {"type": "string", "minLength": bytes_min, "maxLength": bytes_max, "format": f"utf8-{bytes_max}"}
    if field.doc:
        schema["description"] = field.doc
    return schema


# -- replies -----------------------------------------------------------------------------------------------------------


def _success(method: Method, shapes: dict[str, Shape]) -> Schema:
    reply = method.reply
    schema: Schema
    if reply.shape is None:
        schema = {"type": "object", "properties": {method.name: _kind_schema(reply.kind)}, "required": [method.name]}
    else:
        shapes[reply.shape.name] = reply.shape
        schema = _ref(reply.shape)
        if reply.many:
            properties: Schema = {method.name: {"type": "array", "items": schema}}
            if reply.cursor:
                properties["next_cursor"] = {"type": ["string", "null"]}
            schema = {"type": "object", "properties": properties, "required": list(properties)}
    response: Schema = {"description": "Done, and durable.", "content": {JSON: {"schema": schema}}}
    if method.name == "entries":  # see `feed`
        response["description"] = (
            "A line or an event for each entry, or a page, by the header Accept. A stream that goes on sends an empty "
            "line or a comment in between, and one that cannot go on ends with a line or an event `problem`."
        )
        response["content"] |= {NDJSON: {"schema": _ref(shapes["FeedRow"])}, EVENTS: {"schema": {"type": "string"}}}
    if method.option("request_id") is not None:
        replayed = {"description": "Only where this is the first answer again.", "schema": {"const": "true"}}
        response["headers"] = {"Idempotent-Replayed": replayed}
    return response


def _ref(shape: Shape) -> Schema:
    return {"$ref": f"#/components/schemas/{shape.name}"}


def _shape_schema(shape: Shape, shapes: dict[str, Shape]) -> Schema:
    properties: dict[str, Schema] = {}
    required = []
    for field in shape.fields:
        if field.shape is not None:
            shapes[field.shape.name] = field.shape
        named = _properties(field)
        properties |= named
        if not field.optional:
            required += [name for name in named if name == field.name or not field.nullable]
    return {"type": "object", "description": shape.doc, "properties": properties, "required": required}


def _properties(field: ShapeField) -> dict[str, Schema]:
    """Returns the JSON properties of a shape's field: the field itself and, for money, the decimal string beside it."""
    if field.kind == "rates":
        return {
            f"{field.name}_nanos_per_hour": {"type": "object", "additionalProperties": _INT64},
            f"{field.name}_per_hour": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    if field.shape is not None:
        schema = _ref(field.shape)
    elif field.kind == "instants":
        schema = {"type": "object", "additionalProperties": _INT64}
    elif field.choices:
        schema = {"type": "string", "enum": list(field.choices)}
    else:
        schema = _WIDER.get(field.name) or _kind_schema(field.kind)
    if field.many:
        schema = {"type": "array", "items": schema}
    if field.nullable and schema:
        schema = {"oneOf": [schema, {"type": "null"}]}
    if field.doc:
        schema = schema | {"description": field.doc}
    properties = {field.name: schema}
    other = money_name(field.name, field.kind)
    if other:
        properties[other] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?$"}
    return properties


def _kind_schema(kind: str) -> Schema:
    if kind == "text":
        return {"type": "string"}
    if kind == "flag":
        return {"type": "boolean"}
    return {} if kind in ("any", "map") else dict(_INT64)


# -- errors ------------------------------------------------------------------------------------------------------------


def _errors(route: Route) -> Schema:
    by_status: dict[int, list[str]] = {}
    for name in (*route.method.errors, *_ANY_STATUS_ERRORS):
        by_status.setdefault(status_of(name), []).append(name)
    if route.has_body:
        for status in (415, 501):
            by_status.setdefault(status, []).append("INVALID_PARAMS")
    by_status.setdefault(408, []).append("PROTOCOL_ERROR")
    return {
        str(status): _problem_response(" or ".join(title_of(name) for name in names), names)
        for status, names in sorted(by_status.items())
    }


def _problem_response(description: str, names: Any) -> Schema:
    schema = {
        "allOf": [{"$ref": "#/components/schemas/Problem"}, {"properties": {"name": {"enum": sorted(set(names))}}}]
    }
    return {"description": description, "content": {PROBLEM: {"schema": schema}}}


def _problem_schema() -> Schema:
    return {
        "type": "object",
        "properties": {
            "type": {"type": "string", "pattern": f"^{TYPE_PREFIX}"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "integer"},
            "name": {"type": "string", "enum": sorted(KINDS)},
            "retry": {"type": "boolean"},
            "applied": {"type": "string", "enum": ["no", "unknown"]},
        },
        "required": ["type", "title", "status", "detail", "code", "name", "retry", "applied"],
    }
