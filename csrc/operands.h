// Every op's tensors by name, for what treats all ops alike: checks, costs, printing.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <variant>

#include "ops.h"

namespace fermi {

enum class Access : std::uint8_t { read, write, update };

/// `Which`, const or not.
template <class Operation, class Which>
concept OpOf = std::same_as<std::remove_const_t<Operation>, Which>;

/// The tensors of a weight, under its name.
template <OpOf<Weight> AnyWeight, class Visitor>
void visit_parts(std::string_view name, AnyWeight& weight, Access access, Visitor&& visit) {
    visit(name, weight.data, access);
    visit(name, weight.scales, access);
    visit(name, weight.zeros, access);
}

// visit_operands(op, visitor): calls visitor(name, tensor, access) for each tensor, outputs first, undefined ones too.

template <OpOf<Embed> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, op.add ? Access::update : Access::write);
    visit("token_ids", op.token_ids, Access::read);
    visit_parts("table", op.table, Access::read, visit);
}

template <OpOf<Norm> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, op.add ? Access::update : Access::write);
    visit("x", op.x, Access::read);
    visit("weight", op.weight, Access::read);
    visit("bias", op.bias, Access::read);
}

template <OpOf<Linear> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, op.add ? Access::update : Access::write);
    visit("x", op.x, Access::read);
    visit("norm", op.norm, Access::read);
    visit("norm_bias", op.norm_bias, Access::read);
    for (auto& weight : op.weights) visit_parts("weight", weight, Access::read, visit);
    for (auto& bias : op.biases) visit("bias", bias, Access::read);
}

template <OpOf<RopeAngles> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, Access::write);
    visit("positions", op.positions, Access::read);
    visit("lengths", op.lengths, Access::read);
    visit("frequencies", op.frequencies, Access::read);
}

template <OpOf<RopeAppend> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("q", op.q, Access::update);
    visit("key_cache", op.key_cache, Access::update);
    visit("value_cache", op.value_cache, Access::update);
    if (op.key_scales.defined()) {
        visit("key_scales", op.key_scales, Access::update);
        visit("value_scales", op.value_scales, Access::update);
    }
    visit("k", op.k, Access::read);
    visit("v", op.v, Access::read);
    visit("angles", op.angles, Access::read);
    visit("slots", op.slots, Access::read);
    if (op.q_norm.defined()) {
        visit("q_norm", op.q_norm, Access::read);
        visit("k_norm", op.k_norm, Access::read);
    }
}

template <OpOf<Rope> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("x", op.x, Access::update);
    visit("angles", op.angles, Access::read);
}

template <OpOf<Attention> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, Access::write);
    visit("q", op.q, Access::read);
    visit("key_cache", op.key_cache, Access::read);
    visit("value_cache", op.value_cache, Access::read);
    if (op.key_scales.defined()) {
        visit("key_scales", op.key_scales, Access::read);
        visit("value_scales", op.value_scales, Access::read);
    }
    visit("block_tables", op.block_tables, Access::read);
    visit("query_starts", op.query_starts, Access::read);
    visit("context_lengths", op.context_lengths, Access::read);
}

template <OpOf<EncoderAttention> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, Access::write);
    visit("q", op.q, Access::read);
    visit("k", op.k, Access::read);
    visit("v", op.v, Access::read);
    visit("starts", op.starts, Access::read);
    visit("bias", op.bias, Access::read);
}

template <OpOf<Pool> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, Access::write);
    visit("x", op.x, Access::read);
    visit("starts", op.starts, Access::read);
}

template <OpOf<Route> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("experts", op.experts, Access::write);
    visit("weights", op.weights, Access::write);
    visit("logits", op.logits, Access::read);
}

template <OpOf<ExpertLinear> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, op.route_weights.defined() ? Access::update : Access::write);
    visit("x", op.x, Access::read);
    visit("experts", op.experts, Access::read);
    visit("route_weights", op.route_weights, Access::read);
    for (auto& weight : op.weights) visit_parts("weight", weight, Access::read, visit);
}

template <OpOf<GatherRows> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("out", op.out, Access::write);
    visit("x", op.x, Access::read);
    visit("rows", op.rows, Access::read);
}

template <OpOf<Copy> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit("destination", op.destination, Access::write);
    visit("source", op.source, Access::read);
}

template <OpOf<Quantize> Operation, class Visitor>
void visit_operands(Operation& op, Visitor&& visit) {
    visit_parts("out", op.out, Access::write, visit);
    visit("x", op.x, Access::read);
    visit("importance", op.importance, Access::read);
}

template <class Visitor>
void visit_operands(Op& op, Visitor&& visit) {
    std::visit([&](auto& each) { visit_operands(each, visit); }, op);
}

template <class Visitor>
void visit_operands(const Op& op, Visitor&& visit) {
    std::visit([&](const auto& each) { visit_operands(each, visit); }, op);
}

}  // namespace fermi
