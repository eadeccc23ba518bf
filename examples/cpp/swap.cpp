// Runs a program with slots, exported to .aoti.pt2, with one packed adapter after the other, and prints all outputs.
// swap PACKAGE INPUTS.safetensors (ADAPTER.safetensors STRENGTH)…      for a program with one adapter set, on the CPU
#include <ATen/ops/empty.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <fstream>
#include <iostream>
#include <map>
#include <regex>

using Tensors = std::map<std::string, at::Tensor>;
static const std::map<std::string, at::ScalarType> DTYPES = {{"F64", at::kDouble}, {"F32", at::kFloat},
    {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong}, {"I32", at::kInt}, {"BOOL", at::kBool}};

// Format: the header's length in 8 bytes, a header in JSON, the tensors' bytes.
static Tensors read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(file)), {});
  const size_t length = all.size() > 8 ? *reinterpret_cast<const size_t*>(all.data()) : 0;
  TORCH_CHECK(length && length <= all.size() - 8, path, ": is no safetensors file, or cut off");
  const std::regex entry(  // of one tensor; the name, dtype, sizes, and where its bytes start and stop
      R"re("([^"\\]+)":\{"dtype":"(\w+)","shape":\[([\d,]*)\],"data_offsets":\[(\d+),(\d+)\]\})re");
  Tensors found;
  for (std::sregex_iterator each(all.begin() + 8, all.begin() + 8 + length, entry), end; each != end; ++each) {
    std::istringstream sizes(std::regex_replace((*each)[3].str(), std::regex(","), " "));
    auto tensor = at::empty(std::vector<int64_t>{std::istream_iterator<int64_t>(sizes), {}}, DTYPES.at((*each)[2]));
    const size_t start = std::stoull((*each)[4]), stop = std::stoull((*each)[5]);
    TORCH_CHECK(stop - start == tensor.nbytes() && 8 + length + stop <= all.size(), path, ": is cut off");
    std::copy_n(all.data() + 8 + length + start, stop - start, static_cast<char*>(tensor.data_ptr()));
    found[(*each)[1]] = tensor;
  }
  return found;
}

// The names of all inputs in their order, from the description in the package (its keys are sorted).
static std::vector<std::string> names(const std::string& package) {
  caffe2::serialize::PyTorchStreamReader archive(package);
  auto [data, size] = archive.getRecord("extra/manifest.json");
  const std::string text(static_cast<char*>(data.get()), size);
  const size_t start = text.find("\"inputs\": ["), stop = text.find("\"kind\": ", start);
  const std::regex name(R"re("name": "([^"]+)")re");
  return {std::sregex_token_iterator(text.begin() + start, text.begin() + stop, name, 1), {}};
}

int main(int count, char** given) {
  TORCH_CHECK(count > 3 && count % 2 == 1, "swap PACKAGE INPUTS (ADAPTER STRENGTH)...");
  torch::inductor::AOTIModelPackageLoader program(given[1]);
  std::cout.precision(9);
  for (int next = 3; next < count; next += 2) {  // another adapter is another argument: nothing is loaded anew
    Tensors tensors = read(given[2]);
    for (auto& [name, tensor] : read(given[next])) tensors["adapter." + name] = tensor;
    tensors["strengths"] = at::empty({1}, at::kFloat).fill_(std::stod(given[next + 1]));
    std::vector<at::Tensor> inputs;
    for (auto& name : names(given[1])) inputs.push_back(tensors.at(name));
    for (auto& output : program.run(inputs)) {
      auto flat = output.contiguous().flatten().to(at::kDouble);
      for (int64_t i = 0; i < flat.numel(); i++) std::cout << flat.data_ptr<double>()[i] << '\n';
    }
  }
}
