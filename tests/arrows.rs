//! The shape of the workspace: which crate may depend on which, that ARCHITECTURE.md says the same, and rules
//! of style that no lint keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// What each crate may depend on: the layers, from the wire up.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("anyverbs-wire", &[]),
    ("anyverbs-memory", &[]),
    ("anyverbs-engine", &["anyverbs-wire"]),
    ("anyverbs-nic", &["anyverbs-engine", "anyverbs-wire", "anyverbs-memory"]),
    ("anyverbs-link", &["anyverbs-nic", "anyverbs-wire", "anyverbs-engine", "anyverbs-memory"]),
    ("anyverbs-network", &["anyverbs-nic", "anyverbs-engine"]),
    ("anyverbs", &["anyverbs-nic", "anyverbs-link", "anyverbs-network", "anyverbs-memory"]),
    ("anyverbs-bench", &["anyverbs"]),
];

/// The crate that stands for a user: it and its tests see the public API only.
const USER: &str = "anyverbs-bench";

/// Lines in one source file: what one can read in a sitting.
const LINES_MAX: usize = 700;

/// What may not stand in a source file, and why. The halves keep this file itself within the rules.
const FORBIDDEN: [(&str, &str); 4] = [
    (concat!("todo", "!("), "unfinished code does not land"),
    (concat!("unimplemented", "!("), "unfinished code does not land; refuse with a typed error"),
    (concat!("#[", "ignore"), "a test that does not run proves nothing; skip at run time, with a reason"),
    (concat!("```", "ignore"), "an example that is not compiled goes stale; use no_run or compile_fail"),
];

/// A dependency of one crate of the workspace on another.
type Arrow = (String, String);

/// The arrows that leave one crate.
#[derive(Default)]
struct Arrows {
    /// What users of the crate depend on: dependencies and build dependencies.
    built: BTreeSet<Arrow>,
    /// What its own tests use besides.
    tested: BTreeSet<Arrow>,
}

/// The root's manifest and each member's.
struct Workspace {
    members: BTreeMap<String, Table>,
    paths: BTreeSet<String>,
    default_paths: BTreeSet<String>,
    names: Table,
}

impl Workspace {
    /// Reads a workspace. `read` gives the text of the manifest in a member's folder.
    fn read(root: &str, read: impl Fn(&str) -> String) -> Workspace {
        let root: Table = root.parse().expect("the root manifest is TOML");
        let workspace = root["workspace"].as_table().expect("a [workspace] table");
        let paths = strings(workspace, "members");
        let members = paths
            .iter()
            .map(|path| {
                let manifest: Table = match path.as_str() {
                    "." => root.clone(),
                    path => read(path).parse().unwrap_or_else(|error| panic!("{path}/Cargo.toml: {error}")),
                };
                let name = manifest["package"]["name"].as_str().expect("a package has a name");
                (name.to_owned(), manifest)
            })
            .collect();
        Workspace {
            members,
            default_paths: strings(workspace, "default-members"),
            names: workspace.get("dependencies").and_then(Value::as_table).cloned().unwrap_or_default(),
            paths,
        }
    }

    /// Every arrow between two members.
    fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::default();
        for (name, manifest) in &self.members {
            self.collect(name, manifest, &mut arrows);
            let targets = manifest.get("target").and_then(Value::as_table);
            for target in targets.into_iter().flat_map(Table::values).filter_map(Value::as_table) {
                self.collect(name, target, &mut arrows);
            }
        }
        arrows
    }

    /// Adds the arrows of one set of dependency tables: a manifest's, or those under one `[target.X]`.
    fn collect(&self, from: &str, tables: &Table, arrows: &mut Arrows) {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let found = if kind == "dev-dependencies" { &mut arrows.tested } else { &mut arrows.built };
            let Some(table) = tables.get(kind).and_then(Value::as_table) else {
                continue;
            };
            found.extend(
                table
                    .iter()
                    .map(|(key, value)| self.package(key, value))
                    .filter(|to| self.members.contains_key(to) && to != from)
                    .map(|to| (from.to_owned(), to)),
            );
        }
    }

    /// The package that a dependency names: its key, unless `package` says otherwise, here or, when the
    /// dependency is inherited, in the workspace's table.
    fn package(&self, key: &str, value: &Value) -> String {
        let inherited = value.get("workspace").and_then(Value::as_bool).unwrap_or(false);
        let value = if inherited { self.names.get(key).unwrap_or(value) } else { value };
        value.get("package").and_then(Value::as_str).unwrap_or(key).to_owned()
    }

    /// What is wrong with the members and with the arrows between them.
    fn complaints(&self) -> Vec<String> {
        let arrows = self.arrows();
        let known = |name: &str| ALLOWED.iter().any(|(from, _)| *from == name);
        let strangers = self.members.keys().filter(|name| !known(name));
        let unlisted = self.paths.difference(&self.default_paths);
        strangers
            .map(|name| format!("{name} has no place among the layers: name it in tests/arrows.rs"))
            .chain(unlisted.map(|path| format!("{path} is not in default-members: its tests would not run")))
            .chain(
                arrows
                    .built
                    .iter()
                    .filter(|arrow| !may_build(arrow))
                    .map(|(from, to)| format!("{from} -> {to} points the wrong way")),
            )
            .chain(
                arrows
                    .tested
                    .iter()
                    .filter(|arrow| !may_test(arrow))
                    .map(|(from, to)| format!("{from} -> {to} (in its tests) points the wrong way")),
            )
            .collect()
    }
}

/// The strings of an array in a table.
fn strings(table: &Table, key: &str) -> BTreeSet<String> {
    let array = table.get(key).and_then(Value::as_array);
    array.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn allowed(from: &str) -> &'static [&'static str] {
    ALLOWED.iter().find(|(name, _)| *name == from).map_or(&[], |(_, to)| to)
}

/// Whether a crate may be built on another.
fn may_build((from, to): &Arrow) -> bool {
    allowed(from).contains(&to.as_str())
}

/// Whether a crate's tests may use another: they may reach down over a layer, never up or sideways, which
/// would make a cycle that `cargo package` cannot publish. The user's tests see what a user sees.
fn may_test((from, to): &Arrow) -> bool {
    fn below(from: &str, to: &str) -> bool {
        allowed(from).iter().any(|next| *next == to || below(next, to))
    }
    if from == USER { may_build(&(from.clone(), to.clone())) } else { below(from, to) }
}

/// The arrows of the code block that follows the line `<!-- arrows -->`, one `crate -> crate` a line.
fn documented(text: &str) -> Result<BTreeSet<Arrow>, String> {
    let mut lines = text.lines().skip_while(|line| line.trim() != "<!-- arrows -->").skip(1);
    lines
        .find(|line| !line.trim().is_empty())
        .filter(|line| line.starts_with("```"))
        .ok_or("no code block behind a line <!-- arrows -->")?;
    lines
        .take_while(|line| !line.starts_with("```"))
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let (from, to) = line.split_once("->").ok_or_else(|| format!("not an arrow: {line}"))?;
            Ok((from.trim().to_owned(), to.trim().to_owned()))
        })
        .collect()
}

/// Where the document and the manifests differ.
fn differences(documented: &BTreeSet<Arrow>, built: &BTreeSet<Arrow>) -> Vec<String> {
    let missing = built.difference(documented).map(|(from, to)| format!("not drawn: {from} -> {to}"));
    let surplus = documented.difference(built).map(|(from, to)| format!("drawn, not there: {from} -> {to}"));
    missing.chain(surplus).collect()
}

/// What is wrong with the style of one source file.
fn style(path: &str, text: &str) -> Vec<String> {
    let count = text.lines().count();
    let long =
        (count > LINES_MAX).then(|| format!("{path}: {count} lines, above {LINES_MAX}: cut it in two"));
    let forbidden = text.lines().enumerate().flat_map(|(at, line)| {
        FORBIDDEN
            .iter()
            .filter(move |(what, _)| line.contains(what))
            .map(move |(what, why)| format!("{path}:{}: `{what}`: {why}", at + 1))
    });
    long.into_iter().chain(forbidden).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below `folder` that passes `keep`, build products and hidden folders left out.
fn files(folder: &Path, keep: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("a folder that can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, keep, found);
            }
        } else if keep(&path) {
            found.push(path);
        }
    }
}

fn this_workspace() -> Workspace {
    let manifest = read(&root().join("Cargo.toml"));
    Workspace::read(&manifest, |path| read(&root().join(path).join("Cargo.toml")))
}

#[test]
fn arrows_point_one_way() {
    let complaints = this_workspace().complaints();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_crate_is_a_member() {
    let mut manifests = Vec::new();
    files(&root(), &|path| path.file_name().is_some_and(|name| name == "Cargo.toml"), &mut manifests);
    let found: BTreeSet<PathBuf> =
        manifests.iter().filter_map(|path| path.parent()).map(PathBuf::from).collect();
    let members =
        this_workspace().paths.iter().map(|path| root().join(path).components().collect()).collect();
    assert_eq!(found, members, "folders with a Cargo.toml, and the workspace's members");
}

#[test]
fn architecture_draws_the_same_arrows() {
    let drawn = documented(&read(&root().join("ARCHITECTURE.md"))).expect("ARCHITECTURE.md");
    let differences = differences(&drawn, &this_workspace().arrows().built);
    assert!(differences.is_empty(), "ARCHITECTURE.md:\n{}", differences.join("\n"));
}

#[test]
fn source_files_keep_the_style() {
    let mut sources = Vec::new();
    files(&root(), &|path| path.extension().is_some_and(|extension| extension == "rs"), &mut sources);
    assert!(sources.len() > 10, "the walk found {} source files only", sources.len());
    let complaints: Vec<String> = sources
        .iter()
        .flat_map(|path| style(&path.strip_prefix(root()).unwrap_or(path).to_string_lossy(), &read(path)))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The checks themselves, shown to reject what they are for.
mod self_test {
    use super::*;

    const ROOT: &str = r#"
        [workspace]
        members = [".", "wire", "engine"]
        default-members = [".", "wire", "engine"]
        [workspace.dependencies]
        anyverbs-wire = { path = "wire" }
        sneaky = { path = ".", package = "anyverbs" }
        [package]
        name = "anyverbs"
    "#;

    /// A workspace of three in which the wire's manifest and the engine's have these lines more.
    fn workspace(root: &str, wire: &str, engine: &str) -> Workspace {
        Workspace::read(root, |path| {
            let lines = if path == "wire" { wire } else { engine };
            format!("[package]\nname = \"anyverbs-{path}\"\n{lines}")
        })
    }

    fn complaints(wire: &str, engine: &str) -> Vec<String> {
        workspace(ROOT, wire, engine).complaints()
    }

    #[test]
    fn a_right_manifest_passes() {
        let engine = "[dependencies]\nanyverbs-wire.workspace = true\nserde = \"1\"";
        assert_eq!(complaints("", engine), Vec::<String>::new());
        let arrows = workspace(ROOT, "", engine).arrows().built;
        assert_eq!(arrows, BTreeSet::from([("anyverbs-engine".into(), "anyverbs-wire".into())]));
    }

    #[test]
    fn a_wrong_manifest_is_rejected() {
        let upward = ["anyverbs-wire -> anyverbs-engine points the wrong way"];
        assert_eq!(complaints("[dependencies]\nanyverbs-engine = \"1\"", ""), upward);
        assert_eq!(complaints("[build-dependencies]\nanyverbs-engine = \"1\"", ""), upward);
        assert_eq!(complaints("[target.'cfg(unix)'.dependencies]\nanyverbs-engine = \"1\"", ""), upward);
        assert_eq!(
            complaints("[dependencies]\nx = { version = \"1\", package = \"anyverbs-engine\" }", ""),
            upward
        );
        assert_eq!(
            complaints("", "[dependencies]\nsneaky.workspace = true"),
            ["anyverbs-engine -> anyverbs points the wrong way"]
        );
        assert_eq!(
            complaints("[dev-dependencies]\nanyverbs-engine = \"1\"", ""),
            ["anyverbs-wire -> anyverbs-engine (in its tests) points the wrong way"]
        );
    }

    #[test]
    fn tests_may_reach_down_but_the_users_may_not() {
        let arrow = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert!(may_test(&arrow("anyverbs", "anyverbs-wire")));
        assert!(!may_build(&arrow("anyverbs", "anyverbs-wire")));
        assert!(!may_test(&arrow("anyverbs-link", "anyverbs-network")));
        assert!(!may_test(&arrow("anyverbs-bench", "anyverbs-nic")));
        assert!(may_test(&arrow("anyverbs-bench", "anyverbs")));
    }

    #[test]
    fn an_unlisted_member_and_a_stranger_are_rejected() {
        let root =
            ROOT.replace("default-members = [\".\", \"wire\", \"engine\"]", "default-members = [\".\"]");
        let found = workspace(&root, "", "").complaints();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|one| one.contains("not in default-members")), "{found:?}");
        let root = ROOT.replace("\"wire\", \"engine\"", "\"wire\", \"engine\", \"other\"");
        let found = workspace(&root, "", "").complaints();
        assert_eq!(found, ["anyverbs-other has no place among the layers: name it in tests/arrows.rs"]);
    }

    #[test]
    fn a_wrong_drawing_is_rejected() {
        let text = "Text.\n\n<!-- arrows -->\n```text\na -> b\nb -> c\n```\nd -> e\n";
        let drawn = documented(text).expect("a block");
        let arrow = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(drawn, BTreeSet::from([arrow("a", "b"), arrow("b", "c")]));
        assert_eq!(differences(&drawn, &drawn), Vec::<String>::new());
        let built = BTreeSet::from([arrow("a", "b"), arrow("a", "c")]);
        assert_eq!(differences(&drawn, &built), ["not drawn: a -> c", "drawn, not there: b -> c"]);
        assert!(documented("```text\na -> b\n```\n").is_err(), "no marker");
        assert!(documented("<!-- arrows -->\nno block\n```\na -> b\n```\n").is_err(), "no block");
        assert!(documented("<!-- arrows -->\n```\na, b\n```\n").is_err(), "no arrow");
    }

    #[test]
    fn bad_style_is_rejected() {
        assert!(style("a.rs", &"\n".repeat(LINES_MAX)).is_empty());
        assert_eq!(style("a.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
        for (what, _) in FORBIDDEN {
            let found = style("a.rs", &format!("fn f() {{}}\n    {what}\n"));
            assert_eq!(found.len(), 1, "{what}");
            assert!(found[0].starts_with("a.rs:2: "), "{found:?}");
        }
    }
}
