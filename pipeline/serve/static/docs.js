// The API's reference, from the OpenAPI document; everything enters the page as text.
const make = (name, text, attributes = {}) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

const kind = (schema = {}) => {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  const [least, most] = [schema.minimum ?? schema.minLength, schema.maximum ?? schema.maxLength];
  const bounds = most === undefined ? "" : least === undefined ? ` up to ${most}` : ` from ${least} to ${most}`;
  return `${schema.type ?? "any"}${bounds}`;
};

const table = (heads, rows) => {
  const element = make("table");
  const head = element.createTHead().insertRow();
  for (const text of heads) head.append(make("th", text, { scope: "col" }));
  const body = element.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const text of row) line.insertCell().textContent = text;
  }
  return element;
};

const openapi = await (await fetch("/openapi.json")).json();
const target = document.getElementById("operations");
for (const [path, methods] of Object.entries(openapi.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const article = make("article");
    const title = make("h2");
    title.append(make("span", method.toUpperCase(), { class: "method" }), make("code", path));
    article.append(title, make("p", operation.description ?? operation.summary));
    const parameters = (operation.parameters ?? []).map((p) => [
      p.name, p.in, kind(p.schema), p.required ? "required" : `default ${p.schema.default ?? "none"}`, p.description ?? "",
    ]);
    if (parameters.length) article.append(table(["parameter", "in", "type", "", ""], parameters));
    for (const [type, body] of Object.entries(operation.requestBody?.content ?? {}))
      article.append(make("p", `Body: ${type} with ${Object.keys(body.schema.properties ?? {}).join(", ")}`));
    const answers = Object.entries(operation.responses).map(([status, response]) => [
      status, kind(Object.values(response.content ?? {})[0]?.schema), response.description,
    ]);
    article.append(table(["status", "answer", ""], answers));
    target.append(article);
  }
}
for (const [name, schema] of Object.entries(openapi.components?.schemas ?? {})) {
  if (!schema.properties || /Validation/.test(name)) continue;
  const article = make("article");
  article.append(make("h2", name));
  if (schema.description) article.append(make("p", schema.description));
  article.append(table(["field", "type", ""], Object.entries(schema.properties).map(([field, value]) => [field, kind(value), value.description ?? ""])));
  target.append(article);
}
