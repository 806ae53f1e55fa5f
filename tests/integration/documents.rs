//! What the documents say of the repository: the files that they name are there, and every family is in the places that
//! docs/adding-a-model.md lists.

use std::fs;
use std::path::{Path, PathBuf};

use fasq::bench::shapes;
use fasq::config::ModelConfig;
use fasq::family::{FAMILIES, Family};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let in_folder = |folder: &str| {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md"))
    };
    in_folder(".").chain(in_folder("docs")).collect()
}

/// The files and folders of the repository that a text names in backquotes; `{a,b}` names several, NAME stands for any.
fn named(text: &str) -> Vec<String> {
    const ROOMS: [&str; 8] =
        ["src/", "tests/", "docs/", "kernels/", "shaders/", "scripts/", "examples/", "web-demo/"];
    let spans = text.split('`').skip(1).step_by(2);
    let paths = spans.filter(|span| ROOMS.iter().any(|room| span.starts_with(room)));
    let whole = paths.filter(|path| !path.contains([' ', '*']) && !path.contains("NAME"));
    whole
        .flat_map(|path| match path.split_once('{').zip(path.split_once('}')) {
            Some(((before, _), (inside, after))) => {
                let names = inside[before.len() + 1..].split(',');
                names.map(|name| format!("{before}{}{after}", name.trim())).collect()
            }
            None => vec![path.to_owned()],
        })
        .collect()
}

#[test]
fn files_that_documents_name_are_there() {
    let mut count = 0;
    for document in documents() {
        for path in named(&fs::read_to_string(&document).unwrap()) {
            assert!(root().join(&path).exists(), "{}: no {path}", document.display());
            count += 1;
        }
    }
    assert!(count > 30, "only {count} files are named");
}

/// Ministral is Mistral with `layer_types`, and has nothing of its own to show.
const WITHOUT_FIXTURE: &str = "Ministral";

#[test]
fn a_family_is_in_every_place() {
    let family = |config: &str| ModelConfig::parse(config, None).unwrap().family;
    let fixtures: Vec<&Family> = fs::read_dir(root().join("tests/fixtures"))
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("config.json")).ok())
        .map(|config| family(&config))
        .collect();
    let shapes: Vec<&Family> =
        shapes::NAMES.iter().map(|name| family(shapes::config(name).unwrap())).collect();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for each in FAMILIES {
        let name = each.name;
        assert!(readme.contains(name), "{name}: not among the README's models");
        if name == WITHOUT_FIXTURE {
            continue;
        }
        assert!(fixtures.contains(&each), "{name}: no fixture");
        assert!(shapes.contains(&each), "{name}: no shapes in src/bench/shapes.rs");
        #[cfg(feature = "test-support")]
        assert!(
            crate::plans::CASES.iter().any(|(_, config, _)| family(config) == each),
            "{name}: no golden plan"
        );
    }
}
