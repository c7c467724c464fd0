//! From the sources of a library to the text of what is public.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Block, Fields, ImplItem, Item, ItemImpl, ItemMod, TraitItem, Visibility, parse_quote,
};

/// What the library with this first file lets others name.
pub(crate) fn extract(first: &Path) -> String {
    let folder = first.parent().unwrap();
    let items = read(first, folder);
    let mut types = Types::default();
    types.collect(&items);
    prettyplease::unparse(&syn::File {
        shebang: None,
        attrs: Vec::new(),
        items: public(items, &types),
    })
}

/// The items of a file, with those of its modules inside of them.
fn read(file: &Path, folder: &Path) -> Vec<Item> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    nested(parsed.items, folder)
}

fn nested(items: Vec<Item>, folder: &Path) -> Vec<Item> {
    let not_of_tests = items.into_iter().filter(|item| !is_test(item));
    not_of_tests
        .map(|item| {
            let Item::Mod(mut module) = item else {
                return item;
            };
            let name = module.ident.to_string();
            let inner = folder.join(&name);
            let content = match module.content.take() {
                Some((_, items)) => nested(items, &inner),
                None => read(&source(folder, &name), &inner),
            };
            module.content = Some((syn::token::Brace::default(), content));
            Item::Mod(module)
        })
        .collect()
}

fn source(folder: &Path, name: &str) -> PathBuf {
    let [file, inner] = [format!("{name}.rs"), format!("{name}/mod.rs")].map(|f| folder.join(f));
    if file.exists() { file } else { inner }
}

fn is_test(item: &Item) -> bool {
    let (Item::Mod(ItemMod { attrs, .. }) | Item::Impl(ItemImpl { attrs, .. })) = item else {
        return false;
    };
    attrs.iter().any(|attribute| {
        attribute
            .parse_args::<syn::Ident>()
            .is_ok_and(|condition| attribute.path().is_ident("cfg") && condition == "test")
    })
}

/// Names of types and traits, in whatever module.
#[derive(Default)]
struct Types {
    public: BTreeSet<String>,
    private: BTreeSet<String>,
}

impl Types {
    fn collect(&mut self, items: &[Item]) {
        for item in items {
            let (visibility, name) = match item {
                Item::Mod(module) => {
                    let (_, items) = module.content.as_ref().unwrap();
                    self.collect(items);
                    continue;
                }
                Item::Enum(item) => (&item.vis, &item.ident),
                Item::Struct(item) => (&item.vis, &item.ident),
                Item::Trait(item) => (&item.vis, &item.ident),
                Item::Type(item) => (&item.vis, &item.ident),
                Item::Union(item) => (&item.vis, &item.ident),
                _ => continue,
            };
            let names = if is_public(visibility) {
                &mut self.public
            } else {
                &mut self.private
            };
            names.insert(name.to_string());
        }
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn nothing() -> Block {
    parse_quote!({})
}

/// Without documentation, and without what tells compilers and lints alone.
fn attributes(attributes: &mut Vec<Attribute>) {
    const TELLING: [&str; 8] = [
        "cfg",
        "deprecated",
        "derive",
        "kube",
        "macro_export",
        "must_use",
        "non_exhaustive",
        "serde",
    ];
    attributes.retain(|attribute| {
        let hidden = attribute.path().is_ident("doc")
            && attribute
                .parse_args::<syn::Ident>()
                .is_ok_and(|what| what == "hidden");
        hidden || TELLING.iter().any(|name| attribute.path().is_ident(name))
    });
}

fn public(items: Vec<Item>, types: &Types) -> Vec<Item> {
    items
        .into_iter()
        .filter_map(|item| public_item(item, types))
        .collect()
}

fn public_item(item: Item, types: &Types) -> Option<Item> {
    Some(match item {
        Item::Const(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            Item::Const(item)
        }
        Item::Enum(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            for variant in &mut item.variants {
                attributes(&mut variant.attrs);
                for field in &mut variant.fields {
                    attributes(&mut field.attrs);
                }
            }
            Item::Enum(item)
        }
        Item::Fn(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            *item.block = nothing();
            Item::Fn(item)
        }
        Item::Impl(item) => Item::Impl(implementation(item, types)?),
        Item::Macro(mut item) => {
            attributes(&mut item.attrs);
            let exported = item.attrs.iter().any(|a| a.path().is_ident("macro_export"));
            // A call may define anything; a definition is for others where it is exported.
            if item.ident.is_some() && !exported {
                return None;
            }
            Item::Macro(item)
        }
        Item::Mod(mut module) => {
            attributes(&mut module.attrs);
            let (brace, items) = module.content?;
            let items = public(items, types);
            if items.is_empty() {
                return None;
            }
            module.content = Some((brace, items));
            Item::Mod(module)
        }
        Item::Static(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            Item::Static(item)
        }
        Item::Struct(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            item.fields = fields(item.fields);
            Item::Struct(item)
        }
        Item::Trait(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            for inner in &mut item.items {
                match inner {
                    TraitItem::Const(inner) => attributes(&mut inner.attrs),
                    TraitItem::Type(inner) => attributes(&mut inner.attrs),
                    TraitItem::Fn(inner) => {
                        attributes(&mut inner.attrs);
                        inner.default = inner.default.as_ref().map(|_| nothing());
                    }
                    _ => {}
                }
            }
            Item::Trait(item)
        }
        Item::Type(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            Item::Type(item)
        }
        Item::Use(mut item) if is_public(&item.vis) => {
            attributes(&mut item.attrs);
            Item::Use(item)
        }
        _ => return None,
    })
}

/// Of a structure the public fields, and whether there are others: then nobody else can make one.
fn fields(fields: Fields) -> Fields {
    match fields {
        Fields::Named(mut named) => {
            let all = named.named.len();
            named.named = named
                .named
                .into_iter()
                .filter(|field| is_public(&field.vis))
                .map(|mut field| {
                    attributes(&mut field.attrs);
                    field
                })
                .collect();
            if named.named.len() < all {
                let private: syn::FieldsNamed = parse_quote!({ _private: _ });
                named.named.extend(private.named);
            }
            Fields::Named(named)
        }
        Fields::Unnamed(mut unnamed) => {
            for field in &mut unnamed.unnamed {
                attributes(&mut field.attrs);
                if !is_public(&field.vis) {
                    field.ty = parse_quote!(_);
                    field.vis = Visibility::Inherited;
                }
            }
            Fields::Unnamed(unnamed)
        }
        Fields::Unit => Fields::Unit,
    }
}

/// Of methods the public ones; of a trait's implementation that it is there, and its types.
fn implementation(mut item: ItemImpl, types: &Types) -> Option<ItemImpl> {
    attributes(&mut item.attrs);
    if let Some((_, of, _)) = &item.trait_ {
        let name = of.segments.last()?.ident.to_string();
        if types.private.contains(&name) && !types.public.contains(&name) {
            return None;
        }
    }
    let syn::Type::Path(of) = &*item.self_ty else {
        return item.trait_.is_some().then(|| emptied(item));
    };
    let name = of.path.segments.last()?.ident.to_string();
    if item.trait_.is_some() {
        let foreign = !types.private.contains(&name);
        return (foreign || types.public.contains(&name)).then(|| emptied(item));
    }
    if !types.public.contains(&name) {
        return None;
    }
    item.items.retain_mut(|inner| match inner {
        ImplItem::Const(inner) => {
            attributes(&mut inner.attrs);
            is_public(&inner.vis)
        }
        ImplItem::Fn(inner) => {
            attributes(&mut inner.attrs);
            inner.block = nothing();
            is_public(&inner.vis)
        }
        _ => false,
    });
    (!item.items.is_empty()).then_some(item)
}

fn emptied(mut item: ItemImpl) -> ItemImpl {
    item.items
        .retain(|inner| matches!(inner, ImplItem::Type(_)));
    item
}
