//! GitHub's own description of its REST API. Every request of core and every answer of the fake is checked against
//! it.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::sync::{Arc, Mutex, OnceLock};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

/// How often each kind of answer is checked. Checking a large answer takes long.
const ANSWERS_CHECKED: u32 = 12;

/// The statuses that GitHub may answer to any request, although its description does not list them everywhere.
const ALWAYS_POSSIBLE: [u16; 6] = [401, 403, 404, 422, 429, 304];

/// The variable that names the description's file. `scripts/setup` sets it.
fn read_description(variable: &str) -> Value {
    let path = std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run these tests through scripts/test"));
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&text).unwrap()
}

/// The payloads of `event` in GitHub's examples.
pub(crate) fn deliveries(event: &str) -> &'static [Value] {
    let all = all_deliveries().iter().find(|delivery| delivery["name"] == event);
    all.unwrap_or_else(|| panic!("no example of {event}"))["examples"].as_array().unwrap()
}

/// GitHub's examples of deliveries: each event has a `name` and `examples`.
pub(crate) fn all_deliveries() -> &'static [Value] {
    static EXAMPLES: OnceLock<Value> = OnceLock::new();
    EXAMPLES.get_or_init(|| read_description("STAGELY_GITHUB_EXAMPLES")).as_array().unwrap()
}

/// The first example of `event` with this `action`.
pub(crate) fn delivery(event: &str, action: &str) -> Value {
    let found = deliveries(event).iter().find(|example| example["action"] == action);
    found.unwrap_or_else(|| panic!("no example of {event} {action}")).clone()
}

#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// `GET /repos/{owner}/{repo}`.
    pub(crate) name: String,
    value: &'static Value,
}

/// The description. All tests share it, because reading it takes a second.
pub(crate) struct Description {
    whole: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
    checked: Mutex<HashMap<String, u32>>,
}

/// A request of core.
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// The path below the API's address, without the query.
    pub(crate) path: &'a str,
    pub(crate) query: &'a [(String, String)],
    pub(crate) body: &'a [u8],
}

impl Description {
    pub(crate) fn get() -> &'static Self {
        static DESCRIPTION: OnceLock<Description> = OnceLock::new();
        DESCRIPTION.get_or_init(|| Self {
            whole: read_description("STAGELY_GITHUB_DESCRIPTION"),
            validators: Mutex::default(),
            checked: Mutex::default(),
        })
    }

    /// One of the description's examples of answers.
    pub(crate) fn example(&self, name: &str) -> Value {
        let value = &self.whole["components"]["examples"][name]["value"];
        assert!(!value.is_null(), "the description has no example {name}");
        value.clone()
    }

    /// Checks the path, the query and the body of a request. Returns its operation.
    pub(crate) fn check_request(&'static self, asked: &Asked) -> Result<Operation, String> {
        let operation = self.operation(asked.method, asked.path)?;
        self.check_query(&operation, asked.query)?;
        self.check_body(&operation, asked.body)?;
        Ok(operation)
    }

    fn operation(&'static self, method: &str, path: &str) -> Result<Operation, String> {
        let paths = self.whole["paths"].as_object().unwrap();
        let known = |template: &str| {
            let value = &self.whole["paths"][template][method.to_ascii_lowercase()];
            value.is_object().then_some(value)
        };
        let fitting = paths.keys().filter_map(|template| {
            let value = known(template)?;
            let fit = fit(template, path, &self.many_segments(value))?;
            Some((fit, template, value))
        });
        let best = fitting.max_by_key(|(fit, ..)| *fit);
        let (_, template, value) =
            best.ok_or_else(|| format!("GitHub's API knows no {method} {path}"))?;
        Ok(Operation { name: format!("{method} {template}"), value })
    }

    /// The parameters of the path that may contain slashes.
    fn many_segments(&'static self, operation: &'static Value) -> Vec<&'static str> {
        let parameters = self.parameters(operation);
        let many = parameters.filter(|parameter| parameter["x-multi-segment"] == true);
        many.filter_map(|parameter| parameter["name"].as_str()).collect()
    }

    fn parameters(
        &'static self,
        operation: &'static Value,
    ) -> impl Iterator<Item = &'static Value> {
        let all = operation["parameters"].as_array();
        all.into_iter().flatten().map(|parameter| self.resolve(parameter))
    }

    fn resolve(&'static self, value: &'static Value) -> &'static Value {
        match value["$ref"].as_str() {
            Some(reference) => self.whole.pointer(&reference[1..]).unwrap(),
            None => value,
        }
    }

    fn check_query(
        &'static self,
        operation: &Operation,
        query: &[(String, String)],
    ) -> Result<(), String> {
        let name = &operation.name;
        let known: Vec<_> = self
            .parameters(operation.value)
            .filter(|parameter| parameter["in"] == "query")
            .collect();
        for parameter in &known {
            let key = parameter["name"].as_str().unwrap();
            let is_there = query.iter().any(|(name, _)| name == key);
            if parameter["required"] == true && !is_there {
                return Err(format!("{name} wants the parameter {key}"));
            }
        }
        for (key, text) in query {
            let parameter = known.iter().find(|known| known["name"] == **key);
            let parameter = parameter.ok_or_else(|| format!("{name} has no parameter {key}"))?;
            let schema = &parameter["schema"];
            let value = match schema["type"].as_str() {
                Some("integer" | "number" | "boolean") => serde_json::from_str(text)
                    .map_err(|_| format!("{name}: {key}={text} is not of its type"))?,
                _ => json!(text),
            };
            self.check(&format!("{name} ?{key}"), schema, &value)?;
        }
        Ok(())
    }

    fn check_body(&'static self, operation: &Operation, body: &[u8]) -> Result<(), String> {
        let name = &operation.name;
        let described = &operation.value["requestBody"];
        if body.is_empty() {
            let is_wanted = described["required"] == true;
            return if is_wanted { Err(format!("{name} wants a body")) } else { Ok(()) };
        }
        let schema = &described["content"]["application/json"]["schema"];
        if schema.is_null() {
            return Err(format!("{name} takes no body"));
        }
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| format!("the body of {name} is not JSON: {error}"))?;
        self.check(name, schema, &value)?;
        // The description allows unknown fields, so a misspelt field would be ignored.
        let properties = self.resolve(schema)["properties"].as_object();
        if let (Some(properties), Some(sent)) = (properties, value.as_object()) {
            let unknown = sent.keys().find(|key| !properties.contains_key(*key));
            if let Some(key) = unknown {
                return Err(format!("the body of {name} has no field {key}"));
            }
        }
        Ok(())
    }

    /// Checks an answer of the fake.
    pub(crate) fn check_answer(
        &'static self,
        operation: &Operation,
        status: u16,
        body: &[u8],
    ) -> Result<(), String> {
        let name = format!("{} → {status}", operation.name);
        if !self.is_due(&name) {
            return Ok(());
        }
        let described = &operation.value["responses"][status.to_string()];
        if described.is_null() {
            let is_possible = status >= 500 || ALWAYS_POSSIBLE.contains(&status);
            return if is_possible { Ok(()) } else { Err(format!("{name} is not described")) };
        }
        let schema = &self.resolve(described)["content"]["application/json"]["schema"];
        if schema.is_null() {
            return Ok(());
        }
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| format!("the answer of {name} is not JSON: {error}"))?;
        self.check(&name, schema, &value)
    }

    fn is_due(&self, name: &str) -> bool {
        let mut checked = self.checked.lock().unwrap();
        let count = checked.entry(name.to_owned()).or_default();
        *count += 1;
        *count <= ANSWERS_CHECKED
    }

    fn check(
        &'static self,
        name: &str,
        schema: &'static Value,
        value: &Value,
    ) -> Result<(), String> {
        let validator = self.validator(name, schema);
        let wrong = validator.iter_errors(value);
        let wrong: Vec<String> =
            wrong.take(5).map(|error| format!("{}: {error}", error.instance_path())).collect();
        if wrong.is_empty() { Ok(()) } else { Err(format!("{name}: {}", wrong.join("; "))) }
    }

    fn validator(&'static self, name: &str, schema: &'static Value) -> Arc<Validator> {
        if let Some(known) = self.validators.lock().unwrap().get(name) {
            return Arc::clone(known);
        }
        let mut components = Map::new();
        self.collect(schema, &mut components, &mut BTreeSet::new());
        let mut root = to_json_schema(schema);
        root["components"] = json!({ "schemas": components });
        let validator = jsonschema::draft7::new(&root);
        let validator = Arc::new(validator.unwrap_or_else(|error| panic!("{name}: {error}")));
        self.validators.lock().unwrap().insert(name.to_owned(), Arc::clone(&validator));
        validator
    }

    /// Collects only the schemas that `schema` needs, because there are thousands.
    fn collect(
        &'static self,
        schema: &'static Value,
        into: &mut Map<String, Value>,
        seen: &mut BTreeSet<&'static str>,
    ) {
        match schema {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    let name = reference.strip_prefix("#/components/schemas/").unwrap();
                    if seen.insert(name) {
                        let found = &self.whole["components"]["schemas"][name];
                        into.insert(name.to_owned(), to_json_schema(found));
                        self.collect(found, into, seen);
                    }
                }
                fields
                    .iter()
                    .filter(|(key, _)| !is_for_people(key))
                    .for_each(|(_, value)| self.collect(value, into, seen));
            }
            Value::Array(values) => values.iter().for_each(|value| self.collect(value, into, seen)),
            _ => {}
        }
    }
}

fn is_for_people(key: &str) -> bool {
    matches!(key, "example" | "examples" | "description" | "default" | "externalDocs")
        || key.starts_with("x-")
}

/// The number of words of `path` that are literal in the template; `None` if the path does not match.
fn fit(template: &str, path: &str, many: &[&str]) -> Option<usize> {
    let mut words = path.split('/');
    let mut literal = 0;
    let mut parts = template.split('/').peekable();
    while let Some(part) = parts.next() {
        let word = words.next()?;
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(_) if word.is_empty() => return None,
            Some(name) if many.contains(&name) && parts.peek().is_none() => return Some(literal),
            Some(name) if many.contains(&name) => {
                // The template's next word ends the parameter.
                let rest: Vec<&str> = words.by_ref().collect();
                let tail: Vec<&str> = parts.by_ref().collect();
                return rest.ends_with(&tail).then_some(literal + tail.len());
            }
            Some(_) => {}
            None if part == word => literal += 1,
            None => return None,
        }
    }
    words.next().is_none().then_some(literal)
}

/// Converts an `OpenAPI` 3.0 schema into a JSON Schema. They differ in how they mark values that may be null.
fn to_json_schema(schema: &Value) -> Value {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Array(values) => return values.iter().map(to_json_schema).collect(),
        other => return other.clone(),
    };
    // The names in `properties` are free, so they may be `nullable` or `default`.
    let properties = |value: &Value| {
        let all = value.as_object().unwrap().iter();
        all.map(|(key, value)| (key.clone(), to_json_schema(value))).collect::<Map<_, _>>()
    };
    let mut plain = Map::new();
    for (key, value) in fields {
        match key.as_str() {
            "nullable" | "discriminator" | "deprecated" | "readOnly" => {}
            "properties" => drop(plain.insert(key.clone(), properties(value).into())),
            key if is_for_people(key) => {}
            "enum" | "required" => drop(plain.insert(key.clone(), value.clone())),
            _ => drop(plain.insert(key.clone(), to_json_schema(value))),
        }
    }
    if fields.get("nullable") == Some(&json!(true)) {
        return json!({ "anyOf": [{ "type": "null" }, plain] });
    }
    plain.into()
}

#[test]
fn requests_outside_the_description_are_refused() {
    let description = Description::get();
    let check = |method, path, query: &[(&str, &str)], body: &str| {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let query: Vec<_> = query.iter().map(owned).collect();
        let asked = Asked { method, path, query: &query, body: body.as_bytes() };
        description.check_request(&asked).map(|operation| operation.name)
    };
    let comments = "/repos/acme/web/issues/7/comments";
    let good = [
        ("GET", "/repos/acme/web/contents/a/b.yaml", &[("ref", "abc")][..], ""),
        ("GET", "/repos/acme/web/pulls", &[("state", "open"), ("per_page", "100")], ""),
        ("POST", comments, &[], r#"{ "body": "text" }"#),
        ("POST", "/repos/acme/web/statuses/abc", &[], r#"{ "state": "pending" }"#),
        ("GET", "/app/hook/deliveries", &[("cursor", "v1_4")], ""),
    ];
    for (method, path, query, body) in good {
        check(method, path, query, body).unwrap();
    }
    let bad = [
        ("GET", "/repos/acme/web/nonsense", &[][..], "", "knows no GET"),
        ("DELETE", comments, &[], "", "knows no DELETE"),
        ("GET", "/repos/acme/web/pulls", &[("stat", "open")], "", "no parameter stat"),
        ("GET", "/repos/acme/web/pulls", &[("state", "ajar")], "", "ajar"),
        ("GET", "/repos/acme/web/pulls", &[("per_page", "many")], "", "not of its type"),
        ("POST", comments, &[], "", "wants a body"),
        ("POST", comments, &[], r#"{ "text": "text" }"#, "body"),
        ("POST", comments, &[], r#"{ "body": "a", "colour": "red" }"#, "no field colour"),
        ("POST", "/repos/acme/web/statuses/abc", &[], r#"{ "state": "fine" }"#, "fine"),
    ];
    for (method, path, query, body, says) in bad {
        let error = check(method, path, query, body).unwrap_err();
        assert!(error.contains(says), "{method} {path}: {error}");
    }
}
