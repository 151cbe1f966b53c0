//! The Fisher of a network that trains on the device, on buffers of the application's own.
//!
//! A network of two layers learns handwritten digits. Forward pass, backward pass and gradient descent are
//! the application's: three small shaders. The library adds what it is for, in the same command encoder: the
//! gradient at the logits, and from what arrives at each layer a moving average of the per-sample Fisher, at
//! every step of training. After training come the exact, the empirical and the Monte Carlo Fisher, which
//! differ only in the labels that are sent back.

use std::error::Error;

use safetensors::SafeTensors;
use squisher::kernel::noise;
use squisher::kernels::fisher::Epilogue;
use squisher::record::fisher::{Buffers, Linear, Squares};
use squisher::record::likelihood::{Draws, Gradients, Softmax};
use squisher::wgpu::util::DeviceExt;
use squisher::wgpu::{self, Buffer, BufferUsages, CommandEncoder};
use squisher::{Backend, Element, Gpu, Recording, View};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Images of a batch, pixels of an image, hidden units, classes.
pub const SIZES: [u32; 4] = [SAMPLES, PIXELS, HIDDEN, CLASSES];
const SAMPLES: u32 = 64;
const PIXELS: u32 = 64;
const HIDDEN: u32 = 32;
const CLASSES: u32 = 10;
const EPOCHS: u32 = 12;
const RATE: f32 = 0.5;
const DECAY: f32 = 0.95;

/// One invocation an element of `out`.
const SHADERS: &str = "
struct Sizes { samples: u32, inputs: u32, outputs: u32, number: f32 }
@group(0) @binding(0) var<uniform> s: Sizes;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read> hidden: array<f32>;

// out[n, o] = Σ_i input[n, i] weight[o, i], but at least `number`
@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= s.samples * s.outputs { return; }
    let n = id.x / s.outputs;
    let o = id.x % s.outputs;
    var sum = 0.0;
    for (var i = 0u; i < s.inputs; i++) { sum += a[n * s.inputs + i] * b[o * s.inputs + i]; }
    out[id.x] = max(sum, s.number);
}

// out[n, i] = Σ_o gradient[n, o] weight[o, i] where the hidden unit was on
@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= s.samples * s.inputs { return; }
    let n = id.x / s.inputs;
    let i = id.x % s.inputs;
    var sum = 0.0;
    for (var o = 0u; o < s.outputs; o++) { sum += a[n * s.outputs + o] * b[o * s.inputs + i]; }
    out[id.x] = select(0.0, sum, hidden[id.x] > 0.0);
}

// weight[o, i] -= `number` Σ_n gradient[n, o] input[n, i]
@compute @workgroup_size(64)
fn descend(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= s.outputs * s.inputs { return; }
    let o = id.x / s.inputs;
    let i = id.x % s.inputs;
    var sum = 0.0;
    for (var n = 0u; n < s.samples; n++) { sum += a[n * s.outputs + o] * b[n * s.inputs + i]; }
    out[id.x] -= s.number * sum;
}
";

fn main() -> Result<()> {
    let (device, queue) = pollster::block_on(open())?;
    println!("on {}", device.adapter_info().name);
    let report = run(device, queue)?;
    for (epoch, (loss, right)) in report.epochs.iter().enumerate() {
        println!("epoch {:2}: loss {loss:.3}, {:.1} % right", epoch + 1, 100.0 * right);
    }
    let (_, exact) = &report.fishers[0];
    let all = exact.concat();
    println!("\nFishers of {} parameters, and their cosine with the exact one:", all.len());
    for (name, fisher) in &report.fishers {
        println!("  {name:24} {:.4}", cosine(&fisher.concat(), &all));
    }
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|&a, &b| all[b].total_cmp(&all[a]));
    let share = order[..all.len() / 100].iter().map(|&p| all[p]).sum::<f32>() / all.iter().sum::<f32>();
    println!("\n1 % of them hold {:.0} % of the exact Fisher.", 100.0 * share);
    println!(
        "Where the network looks (the first layer's, summed over hidden units):\n{}",
        picture(&exact[0])
    );
    Ok(())
}

async fn open() -> Result<(wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let none =
        |error| format!("this example needs a wgpu adapter, hardware or software (Mesa's lavapipe): {error}");
    let adapter = instance.request_adapter(&Default::default()).await.map_err(none)?;
    Ok(adapter.request_device(&wgpu::DeviceDescriptor::default()).await?)
}

/// Trains and computes every Fisher.
pub fn run(device: wgpu::Device, queue: wgpu::Queue) -> Result<Report> {
    let net = Network::new(device, queue)?;
    let batches = digits(&net.device)?;
    let average = net.fishers();
    let mut epochs = Vec::new();
    for _ in 0..EPOCHS {
        batches.iter().try_for_each(|batch| net.train(batch, &average))?;
        epochs.push(net.evaluate(&batches)?);
    }

    let Network { loss, logits, drawn, gradients, .. } = &net;
    let exact = net.fisher(&batches, CLASSES, |recording, _, class| {
        loss.exact(recording, logits, None, class..class + 1, gradients)
    })?;
    let empirical = net.fisher(&batches, 1, |recording, batch, _| {
        loss.empirical(recording, logits, &batch.labels, gradients)
    })?;
    let monte_carlo = |of: u32| {
        net.fisher(&batches, of, |recording, batch, round| {
            let draws = Draws { seed: 1, first_sample: batch.first, draws: round..round + 1, of };
            loss.monte_carlo(recording, logits, None, &draws, drawn, gradients)
        })
    };
    let (many, one) = (monte_carlo(16)?, monte_carlo(1)?);
    loss.check(&net.backend)?;

    let fishers = vec![
        ("exact", net.read(&exact)?),
        ("Monte Carlo, 16 labels", net.read(&many)?),
        ("Monte Carlo, 1 label", net.read(&one)?),
        ("empirical", net.read(&empirical)?),
        ("average while training", net.read(&average)?),
    ];
    Ok(Report { epochs, fishers, weights: net.read(&net.weights)? })
}

/// What came out.
#[derive(Debug)]
pub struct Report {
    /// Mean loss, and share of images read correctly, after each epoch.
    pub epochs: Vec<(f64, f64)>,
    /// Both layers' Fishers by name, the exact one first.
    pub fishers: Vec<(&'static str, [Vec<f32>; 2])>,
    /// Both layers' weights after training.
    pub weights: [Vec<f32>; 2],
}

/// 64 images and their labels.
struct Batch {
    first: u64,
    images: Buffer,
    host_labels: Vec<u32>,
    labels: View,
}

/// The application: its device, shaders and buffers, and what it lends to the library.
struct Network {
    device: wgpu::Device,
    queue: wgpu::Queue,
    forward: wgpu::ComputePipeline,
    backward: wgpu::ComputePipeline,
    descend: wgpu::ComputePipeline,
    weights: [Buffer; 2],
    hidden: Buffer,
    logit_buffer: Buffer,
    grad_logits: Buffer,
    grad_hidden: Buffer,

    gpu: Gpu,
    backend: Backend,
    loss: Softmax,
    logits: View,
    drawn: View,
    gradients: Gradients,
}

impl Network {
    fn new(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(SHADERS.into()),
        });
        let [forward, backward, descend] = ["forward", "backward", "descend"].map(|entry| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry),
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: Default::default(),
                cache: None,
            })
        });
        let zeros = |len: u32| storage(&device, &vec![0.0_f32; len as usize]);
        let random = |seed, len: u32, scale: f64| {
            let values: Vec<f32> = noise(seed, len as usize).iter().map(|v| (scale * v) as f32).collect();
            storage(&device, &values)
        };
        let (logit_buffer, grad_logits) = (zeros(SAMPLES * CLASSES), zeros(SAMPLES * CLASSES));
        // Lent: clones of the application's handles.
        let gpu = Gpu::from_wgpu(device.clone(), queue.clone());
        let backend = Backend::Gpu(gpu.clone());
        Ok(Self {
            loss: Softmax::new(&backend, SAMPLES, CLASSES)?,
            logits: view(&logit_buffer, Element::F32)?,
            drawn: view(&zeros(SAMPLES), Element::U32)?,
            gradients: Gradients {
                gradient: view(&grad_logits, Element::F32)?,
                weight: view(&zeros(SAMPLES), Element::F32)?,
                norm_sq: view(&zeros(SAMPLES), Element::F32)?,
            },
            weights: [random(1, HIDDEN * PIXELS, 0.2), random(2, CLASSES * HIDDEN, 0.3)],
            hidden: zeros(SAMPLES * HIDDEN),
            grad_hidden: zeros(SAMPLES * HIDDEN),
            logit_buffer,
            grad_logits,
            forward,
            backward,
            descend,
            gpu,
            backend,
            device,
            queue,
        })
    }

    /// One step of gradient descent, and one of the moving average f ← β f + (1−β) 1/N Σ_n g_n².
    fn train(&self, batch: &Batch, average: &[Buffer; 2]) -> Result<()> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        self.forward(&mut encoder, batch);
        let mut recording = Recording::on(&self.gpu);
        self.loss.empirical(&mut recording, &self.logits, &batch.labels, &self.gradients)?;
        recording.encode(&mut encoder)?;
        self.backward(&mut encoder);
        let epilogue = Epilogue::Ema { decay: DECAY };
        let factor = 1.0 / SAMPLES as f32;
        self.square(&mut encoder, batch, average, Squares { epilogue, factor, ..Squares::default() })?;
        self.descend(&mut encoder, batch);
        self.queue.submit([encoder.finish()]);
        Ok(())
    }

    /// Σ over all samples and rounds of the squared gradients of the labels that `labels` records.
    fn fisher(
        &self,
        batches: &[Batch],
        rounds: u32,
        labels: impl Fn(&mut Recording, &Batch, u32) -> squisher::Result<()>,
    ) -> Result<[Buffer; 2]> {
        let sums = self.fishers();
        for batch in batches {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            self.forward(&mut encoder, batch);
            for round in 0..rounds {
                let mut recording = Recording::on(&self.gpu);
                labels(&mut recording, batch, round)?;
                recording.encode(&mut encoder)?;
                self.backward(&mut encoder);
                let add = Squares { epilogue: Epilogue::Add, ..Squares::default() };
                self.square(&mut encoder, batch, &sums, add)?;
            }
            self.queue.submit([encoder.finish()]);
        }
        Ok(sums)
    }

    /// Squares what the backward pass left at each layer, weighted as the labels are.
    fn square(
        &self,
        encoder: &mut CommandEncoder,
        batch: &Batch,
        into: &[Buffer; 2],
        squares: Squares,
    ) -> Result<()> {
        let mut recording = Recording::on(&self.gpu);
        let layers = [
            (&batch.images, PIXELS, &self.grad_hidden, HIDDEN, &into[0]),
            (&self.hidden, HIDDEN, &self.grad_logits, CLASSES, &into[1]),
        ];
        for (input, inputs, grad_output, outputs, out) in layers {
            let [input, grad_output, out] =
                [input, grad_output, out].map(|buffer| view(buffer, Element::F32));
            let (input, grad_output, out) = (input?, grad_output?, out?);
            let weight = &self.gradients.weight;
            let buffers = Buffers { input: &input, grad_output: &grad_output, weight, out: &out };
            Linear { samples: SAMPLES, positions: 1, inputs, outputs }.record(
                &mut recording,
                squares,
                buffers,
            )?;
        }
        Ok(recording.encode(encoder)?)
    }

    fn forward(&self, encoder: &mut CommandEncoder, batch: &Batch) {
        let [first, second] = &self.weights;
        let sizes = [SAMPLES, PIXELS, HIDDEN];
        self.dispatch(encoder, &self.forward, (sizes, 0.0), &[&self.hidden, &batch.images, first]);
        let sizes = [SAMPLES, HIDDEN, CLASSES];
        self.dispatch(encoder, &self.forward, (sizes, f32::MIN), &[&self.logit_buffer, &self.hidden, second]);
    }

    fn backward(&self, encoder: &mut CommandEncoder) {
        let buffers = [&self.grad_hidden, &self.grad_logits, &self.weights[1], &self.hidden];
        self.dispatch(encoder, &self.backward, ([SAMPLES, HIDDEN, CLASSES], 0.0), &buffers);
    }

    fn descend(&self, encoder: &mut CommandEncoder, batch: &Batch) {
        let [first, second] = &self.weights;
        let step = RATE / SAMPLES as f32;
        let buffers = [first, &self.grad_hidden, &batch.images];
        self.dispatch(encoder, &self.descend, ([SAMPLES, PIXELS, HIDDEN], step), &buffers);
        let buffers = [second, &self.grad_logits, &self.hidden];
        self.dispatch(encoder, &self.descend, ([SAMPLES, HIDDEN, CLASSES], step), &buffers);
    }

    fn dispatch(
        &self,
        encoder: &mut CommandEncoder,
        pipeline: &wgpu::ComputePipeline,
        ([samples, inputs, outputs], number): ([u32; 3], f32),
        buffers: &[&Buffer],
    ) {
        let sizes = self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(&[samples, inputs, outputs, number.to_bits()]),
            usage: BufferUsages::UNIFORM,
        });
        let mut entries = Vec::new();
        for (binding, buffer) in (0..).zip([&sizes].into_iter().chain(buffers.iter().copied())) {
            entries.push(wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        }
        let layout = &pipeline.get_bind_group_layout(0);
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &group, &[]);
        // Enough for the largest of the three.
        pass.dispatch_workgroups((samples.max(outputs) * inputs.max(outputs)).div_ceil(64), 1, 1);
    }

    /// Mean loss and share of images read correctly.
    fn evaluate(&self, batches: &[Batch]) -> Result<(f64, f64)> {
        let (mut loss, mut right) = (0.0, 0.0);
        for batch in batches {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            self.forward(&mut encoder, batch);
            self.queue.submit([encoder.finish()]);
            let logits = self.backend.download::<f32>(&self.logits)?;
            for (row, &label) in logits.chunks(CLASSES as usize).zip(&batch.host_labels) {
                let top = row.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = row.iter().map(|z| f64::from(z - top).exp()).sum();
                loss += sum.ln() - f64::from(row[label as usize] - top);
                right += f64::from(u8::from(row[label as usize] == top));
            }
        }
        let count = (batches.len() * SAMPLES as usize) as f64;
        Ok((loss / count, right / count))
    }

    /// Zeros in the shape of both layers' weights.
    fn fishers(&self) -> [Buffer; 2] {
        [HIDDEN * PIXELS, CLASSES * HIDDEN].map(|len| storage(&self.device, &vec![0.0_f32; len as usize]))
    }

    fn read(&self, [first, second]: &[Buffer; 2]) -> Result<[Vec<f32>; 2]> {
        let read = |buffer| self.backend.download::<f32>(&view(buffer, Element::F32)?);
        Ok([read(first)?, read(second)?])
    }
}

/// A buffer of the application's, as the library sees it. All have whole groups of 32 bytes.
fn view(buffer: &Buffer, element: Element) -> squisher::Result<View> {
    View::of_buffer(buffer, buffer.size() / 4, element)
}

fn storage<T: bytemuck::NoUninit>(device: &wgpu::Device, values: &[T]) -> Buffer {
    device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: None,
        contents: bytemuck::cast_slice(values),
        usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
    })
}

/// The images (8 × 8 pixels in [0, 1]) and labels that come with the library.
pub fn images() -> Result<(Vec<f32>, Vec<u32>)> {
    let file = SafeTensors::deserialize(include_bytes!("data/test.safetensors"))?;
    let (images, labels) = (file.tensor("whole")?, file.tensor("labels")?);
    let pixel = |b: &[u8; 4]| f32::from_le_bytes(*b);
    let label = |b: &[u8; 8]| i64::from_le_bytes(*b) as u32;
    Ok((
        images.data().as_chunks().0.iter().map(pixel).collect(),
        labels.data().as_chunks().0.iter().map(label).collect(),
    ))
}

/// Whole batches of them.
fn digits(device: &wgpu::Device) -> Result<Vec<Batch>> {
    let (images, labels) = images()?;
    let whole = images.chunks_exact((SAMPLES * PIXELS) as usize).zip(labels.chunks_exact(SAMPLES as usize));
    (0..)
        .step_by(SAMPLES as usize)
        .zip(whole)
        .map(|(first, (images, labels))| {
            let host_labels = labels.to_vec();
            let labels = view(&storage(device, labels), Element::U32)?;
            Ok(Batch { first, images: storage(device, images), host_labels, labels })
        })
        .collect()
}

/// The cosine of two Fishers.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Σ over hidden units of the first layer's Fisher, as eight rows of shades.
fn picture(fisher: &[f32]) -> String {
    let of_pixel = |i: usize| fisher.iter().skip(i).step_by(PIXELS as usize).sum::<f32>();
    let sums: Vec<f32> = (0..PIXELS as usize).map(of_pixel).collect();
    let top = sums.iter().copied().fold(0.0, f32::max);
    let shade = |sum: &f32| [" ", "░", "▒", "▓", "█"][((sum / top).sqrt() * 4.99) as usize].repeat(2);
    sums.chunks(8).map(|row| format!("    {}\n", row.iter().map(shade).collect::<String>())).collect()
}
