// Eight factors at a time of a product kernel whose rows and columns lie one after the other: loads of 16 bytes.
// Expects lib/dtype.wgsl, lib/element.wgsl, lib/product/base.wgsl and a kernel with column_of, the bindings `input` and
// `grad_output` and the overrides INPUT and GRAD_OUTPUT.

/// Whether eight factors always begin where an octet does.
override ALIGNED: bool = false;

/// The first of eight columns.
struct Columns {
    first: Column,
}

fn columns_of(block: u32, column: u32) -> Columns {
    return Columns(column_of(block, column));
}

fn strip(octet: Octet) -> Strip {
    return Strip(floats(octet.lo), floats(octet.hi));
}

/// Of the 16-bit elements of words a and b, the eight from element `index` on, two a word.
fn eight_halves(a: vec4<u32>, b: vec4<u32>, index: u32) -> vec4<u32> {
    let words = eight_words(a, b, vec4<u32>(), (index / 2u) & 3u);
    let next = vec4<u32>(words.lo.yzw, words.hi.x);
    let between = (words.lo >> vec4<u32>(16u)) | (next << vec4<u32>(16u));
    return select(words.lo, between, (index & 1u) != 0u);
}

/// One element of the output's gradient, and eight from an index on.
fn grad_at(index: u32) -> f32 {
    let word = word_of(index, GRAD_OUTPUT);
    return element(grad_output[word / 4u][word % 4u], index, GRAD_OUTPUT);
}

fn grad_eight(index: u32) -> Strip {
    let quad = word_of(index, GRAD_OUTPUT) / 4u;
    if GRAD_OUTPUT == F32 {
        if ALIGNED {
            return strip(Octet(grad_output[quad], grad_output[quad + 1u]));
        }
        return strip(eight_words(grad_output[quad], grad_output[quad + 1u], grad_output[quad + 2u], index & 3u));
    }
    if ALIGNED {
        return strip(widen(grad_output[quad], GRAD_OUTPUT));
    }
    return strip(widen(eight_halves(grad_output[quad], grad_output[quad + 1u], index), GRAD_OUTPUT));
}

/// The same of the input.
fn input_at(index: u32) -> f32 {
    let word = word_of(index, INPUT);
    return element(input[word / 4u][word % 4u], index, INPUT);
}

fn input_eight(index: u32) -> Strip {
    let quad = word_of(index, INPUT) / 4u;
    if INPUT == F32 {
        if ALIGNED {
            return strip(Octet(input[quad], input[quad + 1u]));
        }
        return strip(eight_words(input[quad], input[quad + 1u], input[quad + 2u], index & 3u));
    }
    if ALIGNED {
        return strip(widen(input[quad], INPUT));
    }
    return strip(widen(eight_halves(input[quad], input[quad + 1u], index), INPUT));
}
