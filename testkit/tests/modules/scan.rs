//! Which file of a crate uses which, by the paths that it names.
//!
//! A path leads to the file that defines what it names: re-exports are followed. The import of a
//! module alone is no use; what is named through it is. Code for tests does not count, nor do paths
//! in visibilities.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, ImplItem, Item, ItemUse, Macro, UseTree, Visibility,
    visit::{self, Visit},
};

/// Which files a file uses; files are named by their modules.
pub(crate) type Uses = BTreeMap<String, BTreeSet<String>>;

/// The names of a module, from the root of the crate on.
type ModulePath = Vec<String>;

/// The uses of a crate that begins with this file.
pub(crate) fn uses(root: &Path) -> Uses {
    let mut crate_ = Crate::default();
    let folder = root.parent().unwrap().to_owned();
    crate_.read(root, &folder, &Vec::new());
    crate_.uses()
}

/// The circles in it: sets of files of which each reaches each.
pub(crate) fn circles(uses: &Uses) -> BTreeSet<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = uses
        .keys()
        .map(|file| (file, reachable(uses, file)))
        .collect();
    let circle = |file: &String| -> Vec<String> {
        let back = |other: &&&String| reached.get(**other).is_some_and(|to| to.contains(file));
        reached[file]
            .iter()
            .filter(back)
            .map(|other| (*other).clone())
            .collect()
    };
    uses.keys()
        .map(circle)
        .filter(|circle| circle.len() > 1)
        .collect()
}

fn reachable<'a>(uses: &'a Uses, from: &String) -> BTreeSet<&'a String> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        for next in uses.get(file).into_iter().flatten() {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    reached
}

#[derive(Default)]
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

#[derive(Default)]
struct Module {
    /// The module that its file is; another one for a module in the middle of a file.
    file: ModulePath,
    /// What it defines itself.
    items: BTreeSet<String>,
    /// What it imports, by the name here.
    imports: BTreeMap<String, Vec<String>>,
    /// Of which modules it imports everything.
    globs: Vec<Vec<String>>,
    /// What else it names.
    paths: Vec<Vec<String>>,
}

impl Crate {
    fn read(&mut self, file: &Path, folder: &Path, module: &ModulePath) {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.items(&parsed.items, folder, module.clone(), module);
    }

    fn items(&mut self, items: &[Item], folder: &Path, module: ModulePath, file: &ModulePath) {
        let mut found = Module {
            file: file.clone(),
            ..Module::default()
        };
        for item in items.iter().filter(|item| !is_test(attributes(item))) {
            match item {
                Item::Mod(inner) => {
                    let name = inner.ident.to_string();
                    let path = [module.clone(), vec![name.clone()]].concat();
                    match &inner.content {
                        Some((_, items)) => self.items(items, &folder.join(&name), path, file),
                        None => self.read(&source(folder, &name), &folder.join(&name), &path),
                    }
                }
                Item::Use(item) => found.import(item),
                item => {
                    found.items.extend(name(item));
                    found.visit_item(item);
                }
            }
        }
        self.modules.insert(module, found);
    }

    fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for (path, module) in &self.modules {
            let entry = uses.entry(label(&module.file)).or_default();
            let named = module.imports.values().chain(&module.paths);
            let items = named.filter_map(|named| self.resolve(path, named, &mut BTreeSet::new()));
            let items = items.filter_map(|end| match end {
                End::Item(file) => Some(file),
                End::Module(_) => None,
            });
            let globs = module.globs.iter().filter_map(|glob| {
                match self.resolve(path, glob, &mut BTreeSet::new())? {
                    End::Module(module) => Some(self.modules[&module].file.clone()),
                    End::Item(file) => Some(file),
                }
            });
            let others = items.chain(globs).filter(|file| *file != module.file);
            entry.extend(others.map(|file| label(&file)));
        }
        uses
    }

    /// Where a path that a module names ends; none outside of the crate.
    fn resolve(
        &self,
        from: &ModulePath,
        named: &[String],
        seen: &mut BTreeSet<(ModulePath, String)>,
    ) -> Option<End> {
        let (mut module, mut rest) = (from.clone(), named);
        let mut relative = true;
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "crate" => module = Vec::new(),
                "self" => {}
                "super" => drop(module.pop()?),
                _ => break,
            }
            (rest, relative) = (others, false);
        }
        if relative && !self.knows(&module, rest.first()?) {
            return None;
        }
        self.descend(module, rest, seen)
    }

    /// Whether a name is a module's own, or comes into it by an import.
    fn knows(&self, module: &ModulePath, name: &String) -> bool {
        let child = [module.clone(), vec![name.clone()]].concat();
        let here = &self.modules[module];
        self.modules.contains_key(&child)
            || here.imports.contains_key(name)
            || here.items.contains(name)
    }

    fn descend(
        &self,
        module: ModulePath,
        rest: &[String],
        seen: &mut BTreeSet<(ModulePath, String)>,
    ) -> Option<End> {
        let Some((name, others)) = rest.split_first() else {
            return Some(End::Module(module));
        };
        let child = [module.clone(), vec![name.clone()]].concat();
        if self.modules.contains_key(&child) {
            return self.descend(child, others, seen);
        }
        let here = self.modules.get(&module)?;
        if here.items.contains(name) {
            return Some(End::Item(here.file.clone()));
        }
        if !seen.insert((module.clone(), name.clone())) {
            return None;
        }
        if let Some(import) = here.imports.get(name) {
            let import = import.clone();
            return match self.resolve(&module, &import, seen)? {
                End::Module(module) => self.descend(module, others, seen),
                end @ End::Item(_) => Some(end),
            };
        }
        let through =
            |glob: &Vec<String>, seen: &mut BTreeSet<_>| match self.resolve(&module, glob, seen)? {
                End::Module(module) => self.descend(module, rest, seen),
                End::Item(file) => Some(End::Item(file)),
            };
        here.globs.iter().find_map(|glob| through(glob, seen))
    }
}

enum End {
    Item(ModulePath),
    Module(ModulePath),
}

impl Module {
    fn import(&mut self, item: &ItemUse) {
        if item.leading_colon.is_none() {
            self.import_tree(Vec::new(), &item.tree);
        }
    }

    fn import_tree(&mut self, prefix: Vec<String>, tree: &UseTree) {
        let with = |name: &dyn ToString| [prefix.clone(), vec![name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import_tree(with(&path.ident), &path.tree),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import_tree(prefix.clone(), tree);
                }
            }
            UseTree::Glob(_) => self.globs.push(prefix),
            UseTree::Name(name) if name.ident == "self" => {
                self.imports
                    .extend(prefix.last().cloned().map(|last| (last, prefix.clone())));
            }
            UseTree::Name(name) => {
                self.imports
                    .insert(name.ident.to_string(), with(&name.ident));
            }
            UseTree::Rename(rename) => {
                let path = if rename.ident == "self" {
                    prefix.clone()
                } else {
                    with(&rename.ident)
                };
                self.imports.insert(rename.rename.to_string(), path);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Module {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if names.len() > 1 && path.leading_colon.is_none() {
            self.paths.push(names);
        }
        visit::visit_path(self, path);
    }

    /// An import in a function holds there only: what it names is used.
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut inner = Self::default();
        inner.import(item);
        self.paths.extend(inner.imports.into_values());
        self.paths.extend(inner.globs);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if let ImplItem::Fn(function) = item
            && is_test(&function.attrs)
        {
            return;
        }
        visit::visit_impl_item(self, item);
    }

    /// `pub(in crate::a)` names a module and uses nothing of it.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_macro(&mut self, called: &'ast Macro) {
        self.visit_path(&called.path);
        self.paths.extend(paths_of(&called.tokens.to_string()));
    }
}

/// The paths in what a macro is given, with spaces between its tokens.
fn paths_of(tokens: &str) -> Vec<Vec<String>> {
    let spaced = tokens.replace("::", " :: ");
    let words: Vec<&str> = spaced
        .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| !word.is_empty())
        .collect();
    let (mut paths, mut path, mut joined) = (Vec::new(), Vec::<String>::new(), false);
    for word in words.into_iter().chain([""]) {
        if word == "::" {
            joined = true;
            continue;
        }
        if !joined {
            paths.extend(Some(std::mem::take(&mut path)).filter(|path| path.len() > 1));
            path.clear();
        }
        path.push(word.to_owned());
        joined = false;
    }
    paths
}

/// The name of a module's file, as Rust writes it.
fn label(module: &ModulePath) -> String {
    if module.is_empty() {
        "crate".to_owned()
    } else {
        module.join("::")
    }
}

fn source(folder: &Path, name: &str) -> PathBuf {
    let [file, inner] = [format!("{name}.rs"), format!("{name}/mod.rs")].map(|f| folder.join(f));
    if file.exists() { file } else { inner }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let condition = list.tokens.to_string();
        list.path.is_ident("cfg")
            && (condition == "test"
                || (condition.starts_with("all")
                    && condition.split(['(', ',', ')', ' ']).any(|w| w == "test")))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}
