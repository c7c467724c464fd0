//! Objects by their names.

use std::{collections::BTreeMap, sync::Arc};

use crate::world::Namespace;

pub(super) type NamespaceName = Arc<str>;
pub(super) type Namespaces = BTreeMap<NamespaceName, Namespace>;
