//! The uniform block of a kernel, described so that a test can compare it with the shader.

/// One member of a uniform block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The member's name, the same in Rust and WGSL.
    pub name: &'static str,
    /// Its WGSL type: `u32`, `i32` or `f32`.
    pub ty: &'static str,
}

/// A uniform block: four-byte members, one after the other. Written with [`params!`](crate::params).
pub trait Params: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The members in order; member `i` lies at byte `4 i`.
    const FIELDS: &'static [Field];

    /// The block's bytes, padded to whole 16-byte rows as uniform buffers are.
    fn bytes(&self) -> Vec<u8>;
}

/// A member of a uniform block.
pub trait Scalar: Copy {
    /// Its name in WGSL.
    const WGSL: &'static str;

    /// Its bytes.
    fn word(self) -> [u8; 4];
}

macro_rules! scalar {
    ($($ty:ident)*) => {$(
        impl Scalar for $ty {
            const WGSL: &'static str = stringify!($ty);

            fn word(self) -> [u8; 4] {
                self.to_le_bytes()
            }
        }
    )*};
}
scalar! { u32 i32 f32 }

/// Declares the uniform block of a kernel: a plain struct of `u32`, `i32` and `f32` members.
///
/// The contract test compares names, types and offsets with the shader's `struct Params`.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* $field:ident: $ty:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name { $($(#[$doc])* pub $field: $ty,)* }

        impl $crate::kernel::Params for $name {
            const FIELDS: &'static [$crate::kernel::Field] = &[$(
                $crate::kernel::Field {
                    name: stringify!($field),
                    ty: <$ty as $crate::kernel::private::Scalar>::WGSL,
                },
            )*];

            fn bytes(&self) -> Vec<u8> {
                let mut bytes = Vec::new();
                $(bytes.extend($crate::kernel::private::Scalar::word(self.$field));)*
                bytes.resize(bytes.len().next_multiple_of(16), 0);
                bytes
            }
        }
    };
}
