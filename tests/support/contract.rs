//! The contract between a kernel's Rust description and its shader, checked without a device.
//!
//! Buffers are bound by position and uniform members are copied by offset, so a renamed binding or two swapped
//! members would not fail: they would compute something else. Naga parses and reflects the shader, and each name,
//! type, offset and access is compared with what the Rust side declares. The limits are WebGPU's default ones,
//! which every device has, and each specialisation is translated to SPIR-V, MSL and HLSL; one that exchanges
//! values in subgroups, which is for software Vulkan, to SPIR-V alone; one for matrix units, which HLSL and
//! GLSL have not, to SPIR-V and MSL.

use naga::back::{glsl, hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Module, Scalar, ShaderStage, StorageAccess, TypeInner};
use squisher::gpu::MatrixUnits;
use squisher::kernel::{Access, Args, Binding, Field, Kernel, Params};

/// WebGPU's default `max_storage_buffers_per_shader_stage`.
const STORAGE_BUFFERS: usize = 8;
/// Kernels that bind more, up to this many: each has another beside it that does the same within the limit.
const MORE_BUFFERS: (&[&str], usize) = (&["merge.fisher_four"], 12);
/// WebGPU's default `max_compute_invocations_per_workgroup`.
const INVOCATIONS: u32 = 256;
/// WebGPU's default `max_compute_workgroup_storage_size`.
const WORKGROUP_BYTES: u32 = 16 << 10;

/// What Rust says of one specialisation of a kernel.
#[derive(Clone, PartialEq)]
pub(crate) struct Described {
    pub(crate) name: &'static str,
    pub(crate) parts: Vec<&'static str>,
    pub(crate) overrides: Vec<(&'static str, f64)>,
    pub(crate) bindings: &'static [Binding],
    pub(crate) fields: &'static [Field],
    pub(crate) subgroup: u32,
    pub(crate) matrix_units: Option<MatrixUnits>,
    pub(crate) directives: &'static str,
}

impl Described {
    pub(crate) fn of<K: Kernel>(kernel: &K) -> Self {
        Self {
            name: K::NAME,
            parts: kernel.wgsl(),
            overrides: kernel.overrides(),
            bindings: K::Args::BINDINGS,
            fields: K::Params::FIELDS,
            subgroup: kernel.subgroup(),
            matrix_units: kernel.matrix_units(),
            directives: kernel.directives(),
        }
    }
}

/// Everything in which the shader and its description differ, and every limit that it exceeds.
pub(crate) fn problems(rust: &Described) -> Vec<String> {
    let text = rust.directives.to_owned() + &rust.parts.join("\n");
    let found = match Shader::read(&text, extensions(rust)) {
        Ok(shader) => {
            [shader.params(rust), shader.buffers(rust), shader.overrides(rust), shader.specialised(rust)]
                .concat()
        }
        Err(problem) => vec![problem],
    };
    found.into_iter().map(|problem| format!("{}: {problem}", rust.name)).collect()
}

/// What a shader may use beyond what every device has.
fn extensions(rust: &Described) -> Capabilities {
    let mut capabilities = Capabilities::empty();
    capabilities.set(Capabilities::SUBGROUP, rust.subgroup > 0 || rust.matrix_units.is_some());
    let halves = Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    capabilities.set(halves, rust.matrix_units.is_some());
    capabilities
}

/// A parsed and validated shader.
struct Shader {
    module: Module,
    info: ModuleInfo,
}

impl Shader {
    fn read(text: &str, capabilities: Capabilities) -> Result<Self, String> {
        let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .map_err(|e| e.emit_to_string(text))?;
        Ok(Self { module, info })
    }

    fn bound(&self, binding: u32) -> Option<&GlobalVariable> {
        let at = |global: &GlobalVariable| {
            global.binding.as_ref().is_some_and(|b| (b.group, b.binding) == (0, binding))
        };
        self.module.global_variables.iter().map(|(_, global)| global).find(|global| at(global))
    }

    /// The uniform block: its name, and each member's name, type and offset.
    fn params(&self, rust: &Described) -> Vec<String> {
        let Some(global) = self.bound(0) else { return vec!["binding 0 is missing in WGSL".into()] };
        let mut found = Vec::new();
        if global.space != AddressSpace::Uniform || global.name.as_deref() != Some("params") {
            let name = global.name.as_deref().unwrap_or("?");
            found.push(format!("binding 0 is `{name}` in {:?}, not the uniform `params`", global.space));
        }
        let ty = &self.module.types[global.ty];
        let TypeInner::Struct { members, span } = &ty.inner else {
            found.push("`params` is not a struct in WGSL".into());
            return found;
        };
        if ty.name.as_deref() != Some("Params") {
            found.push(format!("the type of `params` is {:?} in WGSL, not `Params`", ty.name));
        }
        let wgsl: Vec<String> = members
            .iter()
            .map(|m| {
                let ty = type_name(&self.module.types[m.ty].inner);
                format!("{}: {ty} at {}", m.name.as_deref().unwrap_or("?"), m.offset)
            })
            .collect();
        let host: Vec<String> = rust
            .fields
            .iter()
            .enumerate()
            .map(|(i, f)| format!("{}: {} at {}", f.name, f.ty, 4 * i))
            .collect();
        if wgsl != host {
            found.push(format!(
                "`Params` is {{ {} }} in WGSL, {{ {} }} in Rust",
                wgsl.join(", "),
                host.join(", ")
            ));
        }
        let bytes = (4 * rust.fields.len()).next_multiple_of(16);
        if bytes < *span as usize {
            found.push(format!("`Params` has {span} bytes in WGSL, {bytes} in Rust"));
        }
        found
    }

    /// The storage buffers, from binding 1.
    fn buffers(&self, rust: &Described) -> Vec<String> {
        let mut found = Vec::new();
        for (number, want) in (1..).zip(rust.bindings) {
            match self.bound(number) {
                None => found.push(format!("binding {number} is missing in WGSL, `{}` in Rust", want.name)),
                Some(global) => found.extend(buffer(number, global, want)),
            }
        }
        let resources = self.module.global_variables.iter().filter(|(_, g)| g.binding.is_some()).count();
        if resources != rust.bindings.len() + 1 {
            let rust = rust.bindings.len() + 1;
            found.push(format!("{resources} resources are bound in WGSL, {rust} in Rust"));
        }
        let (more, most) = MORE_BUFFERS;
        let allowed = if more.contains(&rust.name) { most } else { STORAGE_BUFFERS };
        if rust.bindings.len() > allowed {
            found.push(format!("{} storage buffers, {allowed} are allowed", rust.bindings.len()));
        }
        found
    }

    /// Names of overrides, both ways.
    fn overrides(&self, rust: &Described) -> Vec<String> {
        let all = || self.module.overrides.iter().map(|(_, o)| (o.name.as_deref().unwrap_or("?"), o.init));
        let given = |name: &str| rust.overrides.iter().any(|(given, _)| *given == name);
        let unknown = rust.overrides.iter().filter(|(name, _)| !all().any(|(known, _)| known == *name));
        let unset = all().filter(|(name, init)| init.is_none() && !given(name));
        let unknown = unknown.map(|(name, _)| format!("override `{name}` is given in Rust, missing in WGSL"));
        let unset =
            unset.map(|(name, _)| format!("override `{name}` has no default in WGSL, and no value in Rust"));
        unknown.chain(unset).collect()
    }

    /// Limits and translations, with the overrides' values in place.
    fn specialised(&self, rust: &Described) -> Vec<String> {
        let known = |name: &str| self.module.overrides.iter().any(|(_, o)| o.name.as_deref() == Some(name));
        let values =
            rust.overrides.iter().filter(|(name, _)| known(name)).map(|&(name, v)| (name.to_owned(), v));
        let values = values.collect();
        let entry = Some((ShaderStage::Compute, "main"));
        match naga::back::pipeline_constants::process_overrides(&self.module, &self.info, entry, &values) {
            Err(e) => vec![format!("overrides {:?}: {e}", rust.overrides)],
            Ok((module, info)) => {
                [limits(&module, rust.subgroup), translations(&module, &info, rust)].concat()
            }
        }
    }
}

fn buffer(number: u32, global: &GlobalVariable, want: &Binding) -> Vec<String> {
    let mut found = Vec::new();
    let name = global.name.as_deref().unwrap_or("?");
    if name != want.name {
        found.push(format!("binding {number} is `{name}` in WGSL, `{}` in Rust", want.name));
    }
    let access = match global.space {
        AddressSpace::Storage { access } if access == StorageAccess::LOAD => Some(Access::Read),
        AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => Some(Access::Write),
        _ => None,
    };
    if access != Some(want.access) {
        let (space, access) = (global.space, want.access);
        found.push(format!("binding {number} `{name}` is {space:?} in WGSL, {access:?} in Rust"));
    }
    found
}

fn type_name(inner: &TypeInner) -> String {
    match *inner {
        TypeInner::Scalar(Scalar::U32) => "u32".into(),
        TypeInner::Scalar(Scalar::I32) => "i32".into(),
        TypeInner::Scalar(Scalar::F32) => "f32".into(),
        ref other => format!("{other:?}"),
    }
}

fn limits(module: &Module, subgroup: u32) -> Vec<String> {
    let mut found = Vec::new();
    let Some(main) = module.entry_points.iter().find(|e| e.name == "main" && e.stage == ShaderStage::Compute)
    else {
        return vec!["there is no compute entry point `main`".into()];
    };
    let invocations: u32 = main.workgroup_size.iter().product();
    if invocations == 0 || invocations > INVOCATIONS {
        found.push(format!("{invocations} invocations a workgroup, {INVOCATIONS} are allowed"));
    }
    if ![0, invocations].contains(&subgroup) {
        found.push(format!("{invocations} invocations a workgroup, which are not a subgroup of {subgroup}"));
    }
    let shared = module.global_variables.iter().filter(|(_, g)| g.space == AddressSpace::WorkGroup);
    let bytes: u32 = shared.map(|(_, g)| module.types[g.ty].inner.size(module.to_ctx())).sum();
    if bytes > WORKGROUP_BYTES {
        found.push(format!("{bytes} bytes of workgroup memory, {WORKGROUP_BYTES} are allowed"));
    }
    found
}

fn translations(module: &Module, info: &ModuleInfo, rust: &Described) -> Vec<String> {
    let (exchanges, multiplies) = (rust.subgroup > 0, rust.matrix_units.is_some());
    let entry = || Some((ShaderStage::Compute, "main".to_owned()));
    let spirv_entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".into() };
    let lang_version = if exchanges || multiplies { (1, 3) } else { (1, 0) };
    let spirv_options = spv::Options { lang_version, ..Default::default() };
    let spirv = spv::write_vec(module, info, &spirv_options, Some(&spirv_entry)).map(|_| ());
    if exchanges {
        return spirv.err().map(|e| format!("no SPIR-V: {e}")).into_iter().collect();
    }
    let lang_version = if multiplies { (2, 3) } else { (2, 0) };
    let msl_options = msl::Options { lang_version, ..Default::default() };
    let msl_entry = msl::PipelineOptions { entry_point: entry(), ..Default::default() };
    let metal = msl::write_string(module, info, &msl_options, &msl_entry).map(|_| ());
    let hlsl_entry = hlsl::PipelineOptions { entry_point: entry() };
    if multiplies {
        let problems =
            [spirv.err().map(|e| format!("no SPIR-V: {e}")), metal.err().map(|e| format!("no MSL: {e}"))];
        return problems.into_iter().flatten().collect();
    }
    let (mut text, hlsl_options) = (String::new(), hlsl::Options::default());
    let direct =
        hlsl::Writer::new(&mut text, &hlsl_options, &hlsl_entry).write(module, info, None).map(|_| ());
    let open_gl = [glsl::Version::Desktop(430), glsl::Version::new_gles(310)]
        .map(|version| open_gl(module, info, version).err().map(|e| format!("no GLSL {version}: {e}")));
    [
        spirv.err().map(|e| format!("no SPIR-V: {e}")),
        metal.err().map(|e| format!("no MSL: {e}")),
        direct.err().map(|e| format!("no HLSL: {e}")),
    ]
    .into_iter()
    .chain(open_gl)
    .flatten()
    .collect()
}

fn open_gl(module: &Module, info: &ModuleInfo, version: glsl::Version) -> Result<(), glsl::Error> {
    let options = glsl::Options { version, ..Default::default() };
    let (shader_stage, entry_point) = (ShaderStage::Compute, "main".to_owned());
    let entry = glsl::PipelineOptions { shader_stage, entry_point, multiview: None };
    let (mut text, policies) = (String::new(), naga::proc::BoundsCheckPolicies::default());
    glsl::Writer::new(&mut text, module, info, &options, &entry, policies)?.write().map(|_| ())
}
