//! Values of fields, by their paths.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::{
    Config,
    field::{Access, Field},
    yaml,
};
use crate::spec::Problem;

impl Config {
    /// Sets one field from text. `origin` is where the text came from: a flag, an environment
    /// variable, or the path itself; the problem names it.
    ///
    /// # Errors
    /// An unknown path, or a value that breaks the field's rule; nothing is changed then.
    pub fn set(&mut self, path: &str, value: &str, origin: &str) -> Result<(), Problem> {
        let value = value.trim();
        let result = match Self::access(path) {
            Some(access) => (access.set)(self, value),
            None => Err("is not a field of the configuration".to_owned()),
        };
        result.map_err(|rule| {
            let field = if origin == path {
                path.to_owned()
            } else {
                format!("{path} ({origin})")
            };
            Problem::new(field, value, rule)
        })
    }

    /// What can be done with a field; none for an unknown path.
    pub(super) fn access(path: &str) -> Option<&'static Access<Self>> {
        let index = Self::FIELDS.iter().position(|field| field.path == path)?;
        Self::ACCESS.get(index)
    }

    /// A field's value as it stands in a file; none for an unknown path.
    #[must_use]
    pub fn value(&self, path: &str) -> Option<Value> {
        Self::access(path).map(|access| (access.get)(self))
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let section = |field: &Field| field.place().0;
        let mut root = serializer.serialize_map(None)?;
        // The fields of a section follow each other.
        for fields in Self::FIELDS.chunk_by(|a, b| section(a).is_some() && section(a) == section(b))
        {
            let fields = Fields(self, fields);
            match fields.1.first().map(Field::place) {
                Some((Some(section), _)) => root.serialize_entry(section, &fields)?,
                Some((None, name)) => root.serialize_entry(name, &self.value(name))?,
                None => {}
            }
        }
        root.end()
    }
}

/// Fields of one section.
struct Fields<'a>(&'a Config, &'a [Field]);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(config, fields) = self;
        serializer.collect_map(
            fields
                .iter()
                .map(|field| (field.place().1, config.value(field.path))),
        )
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut config = Self::default();
        let problems = yaml::apply_value(&mut config, Value::deserialize(deserializer)?);
        match problems.first() {
            None => Ok(config),
            Some(problem) => Err(serde::de::Error::custom(problem)),
        }
    }
}
