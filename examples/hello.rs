//! The shortest use: one Adam step of a squared-gradient accumulator, on a device if there is one, else on the host.

use squisher::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use squisher::{Backend, DType, Recording, Result};

fn main() -> Result<()> {
    let backend = Backend::detect();

    let gradient = backend.buffer(&[0.5_f32, -2.0, 1e-3], DType::F32)?;
    let exp_avg_sq = backend.buffer(&[1.0_f32, 0.0, 0.0], DType::F32)?;

    let kernel = Ema { gradient: DType::F32, accumulator: DType::F32 };
    let params = EmaParams { len: 3, decay: 0.999, gain: 0.001, gradient_scale: 1.0 };
    let args = EmaArgs { gradient, exp_avg_sq: exp_avg_sq.clone() };
    let mut recording = Recording::new(&backend);
    recording.dispatch(&kernel, params, args)?;
    backend.run(&recording)?;

    println!("on {}: {:?}", backend.name(), backend.download::<f32>(&exp_avg_sq)?);
    Ok(())
}
