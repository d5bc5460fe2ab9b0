def cleanup_dist_env_and_memory():
    print("cleaned up")
