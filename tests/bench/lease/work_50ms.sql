SELECT work_for_50ms();
