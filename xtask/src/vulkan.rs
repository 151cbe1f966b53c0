//! A Vulkan adapter for the tests: found, or installed.
//!
//! An adapter needs three things: the loader (`libvulkan.so.1`), a driver's manifest (a small JSON file in an
//! `icd.d` folder) with the library it names, and, for a driver of real hardware, a device node. A
//! distribution ships manifests for hardware that is not there, so a manifest alone proves nothing; Mesa's
//! software driver (lavapipe) needs no hardware and is what gets installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, steps};

/// Finds an adapter, or installs Mesa's software driver. Returns what was found.
pub(crate) fn ensure() -> Result<String> {
    if !cfg!(target_os = "linux") {
        return Ok("part of this system (Metal, Direct3D 12)".to_owned());
    }
    let missing = match find() {
        Ok(found) => return Ok(found),
        Err(missing) => missing,
    };
    if let Some(variable) = override_variable() {
        return Err(format!("{missing}. {variable} is set and hides every other driver: unset it"));
    }
    println!("{missing}: installing Mesa's software driver");
    install()?;
    find().map_err(|missing| format!("{missing}, although the installation succeeded"))
}

/// The driver the tests will find, or what there is none of.
fn find() -> Result<String> {
    let libraries = Libraries::installed();
    if !libraries.contain("libvulkan.so.1") {
        return Err("no Vulkan loader (libvulkan.so.1)".to_owned());
    }
    let hardware = has_device_node();
    manifests()
        .into_iter()
        .find(|manifest| (hardware || is_software(manifest)) && names_a_library(manifest, &libraries))
        .map(|manifest| manifest.display().to_string())
        .ok_or_else(|| "no Vulkan driver that can work here".to_owned())
}

/// The variable that replaces the loader's own search, if it is set.
fn override_variable() -> Option<&'static str> {
    ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().find(|name| env::var_os(name).is_some())
}

/// Every driver manifest the loader would look at, in its order.
fn manifests() -> Vec<PathBuf> {
    let places: Vec<PathBuf> = match override_variable() {
        Some(name) => paths(name, ""),
        None => paths("VK_ADD_DRIVER_FILES", "").into_iter().chain(search_folders()).collect(),
    };
    places.into_iter().flat_map(json_files).collect()
}

/// The loader's search path: per user and per system, configuration before data.
fn search_folders() -> impl Iterator<Item = PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let mut roots = paths("XDG_CONFIG_HOME", home.join(".config"));
    roots.extend(paths("XDG_CONFIG_DIRS", "/etc/xdg"));
    roots.push("/etc".into());
    roots.extend(paths("XDG_DATA_HOME", home.join(".local/share")));
    roots.extend(paths("XDG_DATA_DIRS", "/usr/local/share:/usr/share"));
    roots.into_iter().map(|root| root.join("vulkan/icd.d"))
}

/// A colon-separated variable, or its default where it is unset or empty.
fn paths(variable: &str, default: impl AsRef<Path>) -> Vec<PathBuf> {
    let value = env::var_os(variable).filter(|value| !value.is_empty());
    let value = value.unwrap_or_else(|| default.as_ref().as_os_str().to_owned());
    env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// A manifest itself, or those in a folder, by name.
fn json_files(place: PathBuf) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(&place) else {
        return if place.is_file() { vec![place] } else { Vec::new() };
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
}

/// Lavapipe and SwiftShader run anywhere.
fn is_software(manifest: &Path) -> bool {
    let name = manifest.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("lvp_icd") || name.contains("swiftshader")
}

/// A render node, an NVIDIA device, or the GPU of a Windows host.
fn has_device_node() -> bool {
    let starts = |folder: &str, prefix: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(prefix))
    };
    starts("/dev/dri", "renderD") || starts("/dev", "nvidia0") || starts("/dev", "dxg")
}

fn names_a_library(manifest: &Path, libraries: &Libraries) -> bool {
    let text = fs::read_to_string(manifest).unwrap_or_default();
    library_path(&text).is_some_and(|library| match library.contains('/') {
        // A relative path is relative to the manifest; joining an absolute one replaces it.
        true => manifest.parent().is_some_and(|folder| folder.join(library).exists()),
        false => libraries.contain(library),
    })
}

/// The value of `"library_path"`; manifests are flat enough to need no JSON reader.
fn library_path(manifest: &str) -> Option<&str> {
    let (_, rest) = manifest.split_once("\"library_path\"")?;
    let (_, rest) = rest.split_once(':')?.1.split_once('"')?;
    rest.split_once('"').map(|(value, _)| value)
}

/// Where shared libraries are: the linker's cache, and the folders it knows.
struct Libraries {
    cache: String,
    folders: Vec<PathBuf>,
}

impl Libraries {
    fn installed() -> Self {
        // An ordinary user's PATH often lacks /sbin.
        let cache = ["ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"]
            .into_iter()
            .find_map(|program| Command::new(program).arg("-p").output().ok())
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        let arch = env::consts::ARCH;
        let mut folders = paths("LD_LIBRARY_PATH", "");
        folders.extend(["/usr/local/lib", "/usr/lib64", "/usr/lib", "/lib"].map(PathBuf::from));
        folders.push(format!("/usr/lib/{arch}-linux-gnu").into());
        Self { cache, folders }
    }

    fn contain(&self, name: &str) -> bool {
        let cached = self.cache.lines().any(|line| line.split_whitespace().next() == Some(name));
        cached || self.folders.iter().any(|folder| folder.join(name).exists())
    }
}

/// A package manager and how it installs lavapipe and the loader.
struct PackageManager {
    program: &'static str,
    refresh: Option<&'static str>,
    install: &'static str,
}

const PACKAGE_MANAGERS: [PackageManager; 3] = [
    PackageManager {
        program: "apt-get",
        refresh: Some("update -q"),
        // A machine that has just started may still be updating itself and hold the lock.
        install: "install -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends mesa-vulkan-drivers libvulkan1",
    },
    PackageManager { program: "dnf", refresh: None, install: "install -y mesa-vulkan-drivers vulkan-loader" },
    PackageManager {
        program: "pacman",
        refresh: None,
        install: "-Sy --noconfirm --needed vulkan-swrast vulkan-icd-loader",
    },
];

impl PackageManager {
    fn command_line(&self) -> String {
        let Self { program, install, .. } = self;
        match self.refresh {
            Some(refresh) => format!("{program} {refresh} && {program} {install}"),
            None => format!("{program} {install}"),
        }
    }
}

fn install() -> Result<()> {
    let manager = PACKAGE_MANAGERS.iter().find(|manager| on_path(manager.program)).ok_or(
        "no package manager that is known here (apt-get, dnf, pacman). Install the Vulkan loader and Mesa's software \
         Vulkan driver (lavapipe), then run this again. Alpine: `apk add vulkan-loader mesa-vulkan-swrast`; \
         openSUSE: `zypper install libvulkan1 libvulkan_lvp`. \
         Without a driver, SQUISHER_SKIP_GPU_TESTS=1 leaves out the tests that need one",
    )?;
    let sudo = match (is_root(), on_path("sudo")) {
        (true, _) => None,
        (false, true) => Some("sudo"),
        (false, false) => return Err(format!("not root and no sudo. As root: `{}`", manager.command_line())),
    };
    if let Some(refresh) = manager.refresh {
        // One unreachable third-party list must not matter if the packages can be had.
        if let Err(problem) = run_as_root(sudo, manager.program, refresh) {
            println!("package lists not refreshed ({problem}); trying with those that are there");
        }
    }
    run_as_root(sudo, manager.program, manager.install)
        .map_err(|problem| format!("`{}`: {problem}", manager.command_line()))
}

/// `env`, because sudo drops most of our own environment.
fn run_as_root(sudo: Option<&str>, program: &str, arguments: &str) -> Result<()> {
    let words = sudo.into_iter().chain(["env", "DEBIAN_FRONTEND=noninteractive", program]);
    let words: Vec<&str> = words.chain(arguments.split(' ')).collect();
    println!("{}", words.join(" "));
    steps::run(Command::new(words[0]).args(&words[1..]))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_path_is_read_from_a_manifest() {
        let text = "{\n \"ICD\": {\n  \"api_version\": \"1.4.305\",\n  \"library_path\" : \"/x/libvulkan_lvp.so\"\n }\n}";
        assert_eq!(library_path(text), Some("/x/libvulkan_lvp.so"));
        assert_eq!(library_path("{}"), None);
        assert_eq!(library_path("\"library_path\": 3"), None);
    }

    #[test]
    fn only_drivers_that_need_no_hardware_count_as_software() {
        assert!(is_software(Path::new("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")));
        assert!(is_software(Path::new("/opt/vk_swiftshader_icd.json")));
        assert!(!is_software(Path::new("/usr/share/vulkan/icd.d/radeon_icd.x86_64.json")));
    }

    #[test]
    fn a_manifest_without_its_library_is_no_driver() {
        let libraries =
            Libraries { cache: "\tlibvulkan_lvp.so (libc6,x86-64) => /x".to_owned(), folders: vec![] };
        assert!(libraries.contain("libvulkan_lvp.so"));
        assert!(!libraries.contain("libvulkan_lvp"));
        assert!(!libraries.contain("libvulkan_radeon.so"));
        assert!(!names_a_library(Path::new("/nonexistent.json"), &libraries));
    }
}
