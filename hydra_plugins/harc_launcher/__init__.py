"""HARC's plugin of Hydra: found in the namespace hydra_plugins, as Hydra finds any installed one."""
