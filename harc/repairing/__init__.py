"""Repair of whole blocks in closed form: every linear map fitted to what its sources compute on their own inputs.

Layer by layer, everything below already repaired; x_m a map's input in the merged model, x_s in the source of the
token's domain, y_s what the source's map makes of x_s, s the token's weight (docs/repair.md):

    W ← W_0 + argmin over D   Σ_i 1/T_i Σ_x s ‖y_s − (W_0 + D) x_m‖²  +  λ tr(D diag(G) Dᵀ)

    G = Σ_i 1/T_i Σ_x s x_m x_mᵀ
"""
