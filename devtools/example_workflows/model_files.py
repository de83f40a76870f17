"""The model files that the workflows for real checkpoints name, of the one table of what is published."""

from cogvideox.model_loaders.downloads.repositories import FILES

_BY_NAME = {file.name: file for file in FILES}

T2V = _BY_NAME["CogVideoX_5b_bf16.safetensors"]
T2V_1_5 = _BY_NAME["CogVideoX_1_5_5b_T2V_bf16.safetensors"]
I2V = _BY_NAME["CogVideoX_1_0_5b_I2V_bf16.safetensors"]
I2V_1_5 = _BY_NAME["CogVideoX_1_5_5b_I2V_bf16.safetensors"]
FUN_CONTROL = _BY_NAME["CogVideoX_Fun_1_1_5b_Control_bf16.safetensors"]
FUN_CONTROL_FP8 = _BY_NAME["CogVideoX_Fun_1_1_5b_Control_fp8_e4m3fn.safetensors"]
T5_FP16 = _BY_NAME["t5xxl_fp16.safetensors"]
T5_FP8 = _BY_NAME["t5xxl_fp8_e4m3fn_scaled.safetensors"]
VAE = _BY_NAME["cogvideox_vae_bf16.safetensors"]
UPSCALER = _BY_NAME["RealESRGAN_x4plus.safetensors"]
INTERPOLATION = _BY_NAME["film_net_fp16.safetensors"]
