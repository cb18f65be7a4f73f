"""The page at /docs: reads /openapi.json and shows its operations and schemas."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>fermi API</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
  code, pre { font-family: ui-monospace, monospace; font-size: .9em }
  pre { overflow-x: auto; padding: .5rem; border: 1px solid #8884; border-radius: 4px }
  details { border: 1px solid #8884; border-radius: 4px; margin: .5rem 0; padding: .25rem .75rem }
  summary { cursor: pointer }
  summary b { display: inline-block; min-width: 4.5rem }
  table { border-collapse: collapse }
  td { vertical-align: top; padding: .15rem .75rem .15rem 0 }
</style>
<h1>fermi</h1>
<p id="about">Loading openapi.json …</p>
<main></main>
<script>
  const make = (tag, text, ...children) => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    element.append(...children);
    return element;
  };
  const kind = (schema) => {
    if (schema.$ref) return schema.$ref.split("/").pop();
    if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
    if ("const" in schema) return JSON.stringify(schema.const);
    const some = schema.anyOf || schema.oneOf;
    if (some) return some.map(kind).join(" | ");
    if (schema.type === "array") return `[${kind(schema.items || {})}]`;
    return [].concat(schema.type || "any").join(" | ");
  };
  const bounds = (schema) => [schema, ...(schema.anyOf || [])].flatMap((each) =>
    [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"], ["maxItems", "items ≤"]]
      .filter(([name]) => name in each).map(([name, sign]) => `${sign} ${each[name]}`)).join(", ");
  const fields = (schema) => make("table", "", ...Object.entries(schema.properties || {}).map(([name, field]) =>
    make("tr", "", make("td", "", make("code", name + ((schema.required || []).includes(name) ? " *" : ""))),
      make("td", "", make("code", kind(field))),
      make("td", [bounds(field), field.description || ""].filter(Boolean).join("; ")))));
  const show = (api) => {
    document.getElementById("about").textContent =
      `${api.info.description} Version ${api.info.version}. Keys: Authorization: Bearer KEY, or x-api-key: KEY.`;
    const main = document.querySelector("main");
    const groups = {};
    for (const [path, methods] of Object.entries(api.paths))
      for (const [method, operation] of Object.entries(methods)) {
        const all = make("details", "", make("summary", "", make("b", method.toUpperCase()), make("code", path)));
        all.append(make("p", operation.description || operation.summary));
        const body = operation.requestBody?.content?.["application/json"]?.schema?.$ref;
        if (body) all.append(fields(api.components.schemas[body.split("/").pop()]));
        (groups[operation.tags?.[0] || "other"] ||= []).push(all);
      }
    for (const [name, all] of Object.entries(groups)) main.append(make("h2", name), ...all);
    main.append(make("h2", "schemas"));
    for (const [name, schema] of Object.entries(api.components.schemas))
      main.append(make("details", "", make("summary", "", make("code", name)), make("p", schema.description),
        fields(schema)));
  };
  fetch("openapi.json").then((reply) => reply.json()).then(show);
</script>
</html>
"""
