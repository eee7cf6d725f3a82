// Doubles of TensorRT's symbolic dimensions, for getOutputShapes.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <deque>

namespace trt_host {

// A constant, or a dimension that is known at run time only.
class Expression final : public nvinfer1::IDimensionExpr {
 public:
  explicit Expression(int64_t value) : impl_(value) { mImpl = &impl_; }

 private:
  class Impl final : public nvinfer1::apiv::VDimensionExpr {
   public:
    explicit Impl(int64_t value) : value_(value) {}
    bool isConstant() const override { return value_ >= 0; }
    int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return false; }

   private:
    int64_t value_;
  };

  Impl impl_;
};

class ExpressionBuilder final : public nvinfer1::IExprBuilder {
 public:
  ExpressionBuilder() { mImpl = &impl_; }

  nvinfer1::DimsExprs expressions(const nvinfer1::Dims& dims) {
    nvinfer1::DimsExprs exprs{};
    exprs.nbDims = dims.nbDims;
    for (int32_t i = 0; i < dims.nbDims; ++i) exprs.d[i] = impl_.constant(dims.d[i]);
    return exprs;
  }

 private:
  class Impl final : public nvinfer1::apiv::VExprBuilder {
   public:
    const nvinfer1::IDimensionExpr* constant(int64_t value) override {
      return &expressions_.emplace_back(value);
    }

    // Of constants, the plain result; of anything else, an unknown.
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation op,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override {
      if (!first.isConstant() || !second.isConstant()) return constant(-1);
      return constant(apply(op, first.getConstantValue(), second.getConstantValue()));
    }

    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      return constant(-1);
    }

   private:
    static int64_t apply(nvinfer1::DimensionOperation op, int64_t a, int64_t b) {
      switch (op) {
        case nvinfer1::DimensionOperation::kSUM:
          return a + b;
        case nvinfer1::DimensionOperation::kPROD:
          return a * b;
        case nvinfer1::DimensionOperation::kMAX:
          return std::max(a, b);
        case nvinfer1::DimensionOperation::kMIN:
          return std::min(a, b);
        case nvinfer1::DimensionOperation::kSUB:
          return a - b;
        case nvinfer1::DimensionOperation::kEQUAL:
          return a == b;
        case nvinfer1::DimensionOperation::kLESS:
          return a < b;
        case nvinfer1::DimensionOperation::kFLOOR_DIV:
          return a / b;
        case nvinfer1::DimensionOperation::kCEIL_DIV:
          return (a + b - 1) / b;
      }
      return -1;
    }

    std::deque<Expression> expressions_;
  };

  Impl impl_;
};

}  // namespace trt_host
