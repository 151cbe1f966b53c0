// Sums over the invocations of a workgroup of 256, in their order: sixteen strips of sixteen, each by one invocation,
// so that few barriers are needed. Every invocation must call them. Expects no part.

var<workgroup> running: array<u32, 256>;
var<workgroup> strips: array<u32, 16>;

/// The sum of `value` over the invocations before `lane`.
fn sum_before(lane: u32, value: u32) -> u32 {
    // What an earlier call left may still be read.
    workgroupBarrier();
    running[lane] = value;
    workgroupBarrier();
    if lane < 16u {
        var sum = 0u;
        for (var i = 16u * lane; i < 16u * lane + 16u; i++) {
            let own = running[i];
            running[i] = sum;
            sum += own;
        }
        strips[lane] = sum;
    }
    workgroupBarrier();
    return running[lane] + sum_of_strips(lane / 16u);
}

fn sum_of_strips(end: u32) -> u32 {
    var sum = 0u;
    for (var strip = 0u; strip < end; strip++) {
        sum += strips[strip];
    }
    return sum;
}

/// The sum over all invocations of the last `sum_before`.
fn sum_of_all() -> u32 {
    return sum_of_strips(16u);
}
